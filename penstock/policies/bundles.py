"""The table: a policy row answers the three questions. A paper is a row, and so is a baseline."""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.batch import Order
from penstock.core.cluster import Chooser, Cluster, Placement, Rank, Rebalancer
from penstock.core.config import Balance, ClusterConfig, InstanceConfig, Limits
from penstock.core.instance import Compose, Instance, Pick, shortest
from penstock.core.predict import Predictor
from penstock.core.step import StepCost
from penstock.policies import fcfs, paced, prefill_first, priority, splitfuse
from penstock.policies.adaptive_pd import AdaptivePd
from penstock.policies.flood import Flood
from penstock.policies.llumnix import Llumnix, Virtual
from penstock.policies.place import freeness, least_decodes, least_loaded, shortest_queue
from penstock.policies.prefix_aware import PrefixAware
from penstock.policies.round_robin import RoundRobin, anywhere
from penstock.policies.scaling import Scaling


@dataclass(frozen=True)
class Row:
    """What a policy answers. On an instance: `compose` fills a step, `order` sorts those who wait, `pick` says whom to
    move. On the cluster: `place` ranks instances for a new job and `onward` for one whose prompt is done (least first),
    `choose` looks at the job itself, `rebalance` moves jobs and sizes the fleet."""

    about: str
    compose: Compose = fcfs.fcfs
    order: Order = fcfs.order
    pick: Pick = shortest
    place: Rank = least_loaded
    onward: Rank | None = None
    choose: Callable[[], Chooser] | None = None
    rebalance: Callable[[Balance], Rebalancer] | None = None
    #: Whether urgent jobs and virtual usage decide, as the balance says; replaces `place`.
    virtual: bool = False
    limits: Limits = field(default_factory=Limits)
    #: Whether it asks how long steps will take.
    predicts: bool = False


ROWS: dict[str, Row] = {
    "fcfs": Row("continuous batching with chunked prefill (Sarathi-Serve, vLLM)"),
    "prefill-first": Row("whole prompts before any decoding (vLLM 0.2)", prefill_first.prefill_first),
    "splitfuse": Row(
        "a fixed token budget, admission by peak (DeepSpeed-FastGen, LightLLM)",
        splitfuse.splitfuse,
        limits=Limits(max_num_batched_tokens=512),
    ),
    "paced": Row("prompt chunks as long as the tightest TPOT allows, by prediction", paced.paced, predicts=True),
    "priority": Row("the more urgent first, and it preempts", priority.priority, order=priority.order),
    "distserve": Row(
        "prompts and decoding on instances of their own (DistServe)", place=shortest_queue, onward=least_decodes
    ),
    "llumnix": Row(
        "running jobs move: balance, defragmentation, priorities, scaling (Llumnix)",
        order=priority.order,
        virtual=True,
        rebalance=Llumnix,
    ),
    "adaptive-pd": Row(
        "as distserve, with roles by load and rescheduling (Llumnix's second version)",
        place=shortest_queue,
        onward=least_decodes,
        rebalance=AdaptivePd,
    ),
    "round-robin": Row("new jobs in turn, whatever the load", place=anywhere, onward=least_loaded, choose=RoundRobin),
    "least-loaded": Row("new jobs where the fewest are"),
    "infaas++": Row(
        "new jobs where the most room is for each job, queues counted (INFaaS++)", place=freeness, rebalance=Scaling
    ),
    "prefix-aware": Row("new jobs where their prefix is (SGLang's router)", choose=PrefixAware),
    "flood": Row("for tests: every job moves all the time", rebalance=Flood),
}


def row(name: str) -> Row:
    """Raises ValueError naming the rows that exist."""
    if name not in ROWS:
        raise ValueError(f"policy {name!r} is not known; choose one of {', '.join(ROWS)}")
    return ROWS[name]


def make_instance(config: InstanceConfig, cost: StepCost | None = None) -> Instance:
    """The instance that a configuration describes: live, simulated and replayed ones are all made here. `cost` is what
    the policy reckons with, if it reckons at all; it need not be what steps really cost."""
    chosen, steps = row(config.policy), row(config.compose or config.policy)
    predictor = Predictor(cost, config.correct) if steps.predicts and cost is not None else None
    return Instance(config, steps.compose, chosen.order, predictor, chosen.pick)


def make_cluster(config: ClusterConfig) -> Cluster:
    """The cluster core that a configuration describes."""
    chosen, balance = row(config.policy), config.balance
    virtual = Virtual(balance) if chosen.virtual and balance.dispatch else None
    placement = Placement(
        place=virtual.place if virtual is not None else chosen.place,
        place_urgent=virtual.place_urgent if virtual is not None else None,
        onward=chosen.onward,
        choose=chosen.choose() if chosen.choose is not None else None,
        rebalance=chosen.rebalance(balance) if chosen.rebalance is not None else None,
    )
    return Cluster(config, placement)
