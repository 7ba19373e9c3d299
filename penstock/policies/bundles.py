"""The table: a policy row answers the three questions. A paper is a row, and so is a baseline."""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.batch import Limits, Order
from penstock.core.cluster import Cluster, ClusterConfig
from penstock.core.events import Load
from penstock.core.instance import Compose, Instance, InstanceConfig
from penstock.core.predict import Predictor
from penstock.core.step import StepCost
from penstock.policies import fcfs, paced, prefill_first, priority, splitfuse
from penstock.policies.place import least_loaded


@dataclass(frozen=True)
class Row:
    """`place` ranks instances for a new job (least first), `compose` fills a step, `order` sorts those who wait."""

    about: str
    compose: Compose
    order: Order = fcfs.order
    place: Callable[[Load], float] = least_loaded
    limits: Limits = field(default_factory=Limits)
    #: Whether it asks how long steps will take.
    predicts: bool = False


ROWS: dict[str, Row] = {
    "fcfs": Row("continuous batching with chunked prefill (Sarathi-Serve, vLLM)", fcfs.fcfs),
    "prefill-first": Row("whole prompts before any decoding (vLLM 0.2)", prefill_first.prefill_first),
    "splitfuse": Row(
        "a fixed token budget, admission by peak (DeepSpeed-FastGen, LightLLM)",
        splitfuse.splitfuse,
        limits=Limits(max_num_batched_tokens=512),
    ),
    "paced": Row("prompt chunks as long as the tightest TPOT allows, by prediction", paced.paced, predicts=True),
    "priority": Row("the more urgent first, and it preempts", priority.priority, order=priority.order),
}


def row(name: str) -> Row:
    """Raises ValueError naming the rows that exist."""
    if name not in ROWS:
        raise ValueError(f"policy {name!r} is not known; choose one of {', '.join(ROWS)}")
    return ROWS[name]


def make_instance(config: InstanceConfig, cost: StepCost | None = None) -> Instance:
    """The instance that a configuration describes: live, simulated and replayed ones are all made here. `cost` is what
    the policy reckons with, if it reckons at all; it need not be what steps really cost."""
    chosen = row(config.policy)
    predictor = Predictor(cost, config.correct) if chosen.predicts and cost is not None else None
    return Instance(config, chosen.compose, chosen.order, predictor)


def make_cluster(config: ClusterConfig) -> Cluster:
    """The cluster core that a configuration describes."""
    return Cluster(config, row(config.policy).place)
