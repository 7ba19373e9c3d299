"""What SLOs such as `ttft=5x` are multiples of: one yardstick for all options, or a slow option would promise less.

It is the smallest instance that some option has, alone with a request, delays of messages included; a line through
what it takes for prompts of the workload's lengths (`metrics.idle`).
"""

from collections.abc import Sequence

import numpy as np

from penstock.cost.models import Model
from penstock.drivers.scenario import Delays
from penstock.metrics.idle import Idle
from penstock.metrics.record import Record
from penstock.plan.space import Option
from penstock.plan.trial import Load

#: Prompt lengths that are asked for: these quantiles of the workload's.
_QUANTILES = np.linspace(0.05, 0.95, 10)


def reference(options: Sequence[Option], load: Load, seed: int) -> tuple[Idle, str]:
    """Idle times, and the instance that they are of. Raises ValueError where no option can be."""
    found: list[tuple[tuple[int, int], str, Model, Delays]] = []
    for option in options:
        if not option.reason:
            laid = option.lay_out()
            for spec, pool in zip(option.deployment.pools, laid.pools, strict=True):
                size = (spec.tp * spec.pp, spec.pp)
                said = f"{option.deployment.model}, tp {spec.tp}, pp {spec.pp}"
                found.append((size, said, laid.costs[pool.first], laid.sim.delays))
    if not found:
        raise ValueError("no option can be deployed, so multiples of idle time mean nothing; give times: ttft=500ms")
    _, said, cost, delays = min(found, key=lambda one: one[0])
    requests = load.requests(1.0, seed)
    prompts = np.unique(np.quantile([r.prompt_tokens for r in requests], _QUANTILES).round()).astype(int).tolist()
    answer = max(2, round(float(np.median([r.output_tokens for r in requests]))))
    return Idle.fit(_lone(cost, delays, prompt, answer) for prompt in prompts), said


def _lone(cost: Model, delays: Delays, prompt: int, answer: int) -> Record:
    first_ns, token_ns = cost.request_ns(prompt, answer)
    first_ns += delays.front + round(delays.front_per_token * prompt) + delays.dispatch + delays.token
    end_ns = first_ns + (answer - 1) * token_ns
    return Record(
        id=0, scheduled_ns=0, sent_ns=0, end_ns=end_ns, prompt_tokens=prompt, times_ns=[first_ns, end_ns],
        counts=[1, answer - 1],
    )  # fmt: skip
