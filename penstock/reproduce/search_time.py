"""What a search for a placement takes, over the number of GPUs: DistServe's figure 12."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.plan.bounds import Filter
from penstock.plan.search import Terms, grid_max, search
from penstock.plan.space import Cluster, Space, options, pairs
from penstock.plan.trial import Goal, Load
from penstock.reproduce.figure import Figure, merged
from penstock.reproduce.numbers import Numbers


def measure(figure: Figure, row: str, change: Mapping[str, Any], seed: int) -> Numbers:
    """CPU time of the search that `penstock plan` makes, on one core. `change` says `space`, as `plan.space.Space`."""
    asked = merged(figure.rows[row].deployment, change.get("space", {}))
    load = figure.load_of(row, change)
    space = Space(
        model=asked["model"], cluster=Cluster.parse(asked["cluster"]), slo=figure.promise, policies=("distserve",),
        affinity=asked["affinity"], ratios=((1, 1),), cost=asked.get("cost", ""), pool=asked.get("pool", {}),
        move_gb_per_s=asked.get("move_gb_per_s"),
    )  # fmt: skip
    terms = Terms(
        goal=Goal(figure.promise, marginal=True),
        load=Load(lengths=load.lengths, arrival=load.arrival, num_prompts=load.requests, duration_s=0.0),
        seeds=(seed,), rate_max=5.0, precision=0.0, step=0.25, best=1,
    )  # fmt: skip
    began = time.process_time()
    every = options(space)
    bounded = Filter(terms.load, terms.goal, terms.seeds)
    possible = [(option, bounded.bounds(option)) for option in every if not option.reason]
    terms = msgspec.structs.replace(terms, rate_max=min(5.0, grid_max(possible)) if possible else 5.0)
    answers = search(possible, terms)
    took_s = time.process_time() - began
    best = answers[0].rate if answers else 0.0
    return Numbers(
        values={"search_s": took_s, "pairs": float(len(pairs(space))), "possible": float(len(possible)), "best": best}
    )
