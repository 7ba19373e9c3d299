"""What is deployed, as a file: pools of instances, what they run on, how they are scheduled, what messages take.

    model: llama-3.1-8b              a name or a folder with a config.json: weights and KV bytes come from it
    policy: fcfs
    slo: ttft=500ms,tpot=50ms
    pools:
      - instances: 8
        hardware: h200
        tp: 1
    delays: {front_ms: 2, dispatch_ms: 0.3, token_ms: 0.5}

Every key has a default but `pools`; see the structs. Knows no HTTP and starts nothing: it says what is to be simulated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from penstock.core.batch import Limits
from penstock.core.cluster import ClusterConfig
from penstock.core.instance import InstanceConfig
from penstock.core.slo import MS, SECOND, Slo
from penstock.cost import hardware, memory, named, shapes
from penstock.cost.models import Model, Scaled
from penstock.drivers.sim import Delays, Failure, MemberConfig, SimConfig
from penstock.policies.bundles import row

GB = 10**9


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Instances of one kind."""

    instances: int = 1
    #: h200, h100, a100, a800 or a10; with the model it gives step times, KV capacity and weights.
    hardware: str = ""
    tp: int = 1
    pp: int = 1
    #: What steps cost, as `penstock simulate --cost` takes it; empty: composed from hardware and model.
    cost: str = ""
    #: Tokens of KV that an instance holds; None: what memory leaves.
    kv_tokens: int | None = None
    utilization: float = 0.9
    page_tokens: int = 16
    block_tokens: int = 64
    #: As in `penstock serve`; None: the policy row's.
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_queued_reqs: int | None = None
    pipeline_depth: int = 1
    #: What the policy reckons with; empty: with what steps do cost. And by how much it is wrong.
    predictor: str = ""
    predictor_factor: float = 1.0
    #: Whether what steps take corrects it.
    correct: bool = True
    #: Seconds that a start takes beside loading the weights.
    start_s: float = 0.0


class DelaySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the front and messages take."""

    front_ms: float = 0.0
    front_us_per_token: float = 0.0
    dispatch_ms: float = 0.0
    token_ms: float = 0.0
    report_ms: float = 0.0


class FailureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance that fails, by its number over all pools; `down_s` None: it does not come back."""

    instance: int
    at_s: float
    down_s: float | None = None


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's docstring."""

    model: str = ""
    policy: str = "fcfs"
    slo: str = ""
    pools: list[PoolSpec]
    delays: DelaySpec = DelaySpec()
    #: Bandwidth over which all instances load their weights, GB/s; 0: loading takes no time.
    load_gb_per_s: float = 0.0
    #: Instances are ready when the run begins.
    warm: bool = True
    failures: list[FailureSpec] = []

    @staticmethod
    def read(path: str | Path) -> "Deployment":
        """From a YAML file. Raises ValueError that names what is wrong, and OSError."""
        try:
            return msgspec.convert(yaml.safe_load(Path(path).read_text()), Deployment)
        except (yaml.YAMLError, msgspec.ValidationError) as error:
            raise ValueError(f"{path}: {error}") from None

    def changed(self, pool: dict[str, Any], **whole: Any) -> "Deployment":
        """With values that are not None put over those of every pool, and of the whole."""
        pools = [msgspec.structs.replace(spec, **_given(pool)) for spec in self.pools]
        return msgspec.structs.replace(self, pools=pools, **_given(whole))

    def check(self) -> None:
        """Raises ValueError."""
        row(self.policy)
        Slo.parse(self.slo)
        count = sum(pool.instances for pool in self.pools)
        if count < 1 or any(pool.instances < 1 for pool in self.pools):
            raise ValueError("pools: each needs at least one instance")
        if len({pool.block_tokens for pool in self.pools}) > 1:
            raise ValueError("pools: all must have the same block_tokens, since the names of blocks are shared")
        for failure in self.failures:
            if not 0 <= failure.instance < count:
                raise ValueError(f"failures: there is no instance {failure.instance}, they go from 0 to {count - 1}")


class Laid(msgspec.Struct, frozen=True):
    """A deployment, ready to be simulated."""

    sim: SimConfig
    #: Of each instance.
    costs: Sequence[Model]
    #: GPUs of all instances; 0 where the hardware is not said.
    gpus: int
    #: What was worked out, in words.
    notes: list[str]


def lay_out(deployment: Deployment, cost: Model | None = None) -> Laid:
    """Instances, their costs and capacities; `cost` instead of what the pools say. Raises ValueError that says what to
    change."""
    deployment.check()
    members: list[MemberConfig] = []
    costs: list[Model] = []
    notes: list[str] = []
    for pool in deployment.pools:
        here = cost if cost is not None else _cost(deployment, pool)
        member = _member(deployment, pool, here)
        members += [member] * pool.instances
        costs += [here] * pool.instances
        room = member.instance.pages * pool.page_tokens
        notes.append(f"{pool.instances} x {_title(deployment, pool)}, each with room for {room} tokens of KV.")
    queued = max(member.instance.limits.max_num_queued for member in members)
    delays = deployment.delays
    sim = SimConfig(
        members=members,
        cluster=ClusterConfig(policy=deployment.policy, max_num_queued=queued),
        delays=Delays(
            front=round(delays.front_ms * MS),
            front_per_token=delays.front_us_per_token * 1000,
            dispatch=round(delays.dispatch_ms * MS),
            token=round(delays.token_ms * MS),
            report=round(delays.report_ms * MS),
        ),
        load_bytes_per_s=deployment.load_gb_per_s * GB,
        warm=deployment.warm,
        failures=[_failure(failure) for failure in deployment.failures],
    )
    gpus = sum(pool.instances * pool.tp * pool.pp for pool in deployment.pools if pool.hardware)
    return Laid(sim, costs, gpus, notes)


def _cost(deployment: Deployment, pool: PoolSpec) -> Model:
    if pool.cost:
        return named.resolve(pool.cost).cost
    _need(deployment, pool, "step times (or give cost)")
    return named.resolve(f"{pool.hardware}/{deployment.model}/tp{pool.tp}/pp{pool.pp}").cost


def _member(deployment: Deployment, pool: PoolSpec, cost: Model) -> MemberConfig:
    limits = row(deployment.policy).limits
    changes = {
        "max_num_seqs": pool.max_num_seqs,
        "max_num_batched_tokens": pool.max_num_batched_tokens,
        "max_num_queued": pool.max_num_queued_reqs,
    }
    limits = msgspec.structs.replace(limits, **_given(changes))
    shape = shapes.named(deployment.model) if deployment.model else None
    instance = InstanceConfig(
        policy=deployment.policy,
        pages=max(1, _kv_tokens(deployment, pool, limits) // pool.page_tokens),
        page_tokens=pool.page_tokens,
        block_tokens=pool.block_tokens,
        depth=pool.pipeline_depth,
        stages=pool.pp,
        limits=limits,
        correct=pool.correct,
    )
    return MemberConfig(
        instance=instance,
        predictor=_predictor(pool, cost),
        load_bytes=shape.weight_bytes if shape is not None else 0,
        start_ns=round(pool.start_s * SECOND),
    )


def _kv_tokens(deployment: Deployment, pool: PoolSpec, limits: Limits) -> int:
    if pool.kv_tokens is not None:
        return pool.kv_tokens
    _need(deployment, pool, "the KV capacity (or give kv_tokens)")
    shape = shapes.named(deployment.model)
    return memory.kv_tokens(
        hardware.named(pool.hardware),
        shape,
        tp=pool.tp,
        pp=pool.pp,
        utilization=pool.utilization,
        reserve=memory.activation_bytes(shape, limits.max_num_batched_tokens, pool.tp),
        page_tokens=pool.page_tokens,
    )


def _predictor(pool: PoolSpec, cost: Model) -> Model | None:
    if not pool.predictor and pool.predictor_factor == 1.0:
        return None
    if pool.predictor:
        cost = named.resolve(pool.predictor).cost
    return cost if pool.predictor_factor == 1.0 or isinstance(cost, Scaled) else Scaled(cost, pool.predictor_factor)


def _failure(spec: FailureSpec) -> Failure:
    down_ns = None if spec.down_s is None else round(spec.down_s * SECOND)
    return Failure(instance=spec.instance, at_ns=round(spec.at_s * SECOND), down_ns=down_ns)


def _need(deployment: Deployment, pool: PoolSpec, what: str) -> None:
    if not deployment.model or not pool.hardware:
        raise ValueError(f"{what} cannot be worked out without `model` and a pool's `hardware`")


def _title(deployment: Deployment, pool: PoolSpec) -> str:
    parallel = f" tp {pool.tp}" * (pool.tp > 1) + f" pp {pool.pp}" * (pool.pp > 1)
    return f"{deployment.model or 'a model'} on {pool.hardware or 'hardware as its cost says'}{parallel}"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
