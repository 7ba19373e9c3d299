"""What is deployed, as a file: pools of instances, what they run on, how they are scheduled, what messages take.

    model: llama-3.1-8b              a name or a folder with a config.json: weights and KV bytes come from it
    policy: fcfs
    slo: ttft=500ms,tpot=50ms
    pools:
      - instances: 8
        hardware: h200
        tp: 1
    delays: {front_ms: 2, dispatch_ms: 0.3, token_ms: 0.5}

and, where jobs move, `role:` of a pool, `move_gb_per_s`, `moves:` and `balance:`. Every key has a default but `pools`;
see the structs. `planned:` is what `penstock plan` had in mind; no simulation reads it. Knows no HTTP and starts
nothing: it says what is to be simulated.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from penstock.core.config import Balance, ClusterConfig, InstanceConfig, Limits, MoveLimits
from penstock.core.slo import MS, SECOND, Slo
from penstock.core.step import Features
from penstock.cost import hardware, memory, named, shapes
from penstock.cost.models import Model, Scaled
from penstock.drivers.scenario import Delays, Failure, MemberConfig, SimConfig
from penstock.policies.bundles import row

GB = 10**9
US = 1000
#: What an instance may be there for; empty: both.
ROLES = ("", "prefill", "decode")
#: Computing again stops a job and holds up the others of its batch, copying holds up nobody: a moment of it counts as
#: so many.
_HELD_UP = 4

Count = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Instances of one kind."""

    instances: Count = 1
    #: One of `ROLES`, to begin with.
    role: str = ""
    #: h200, h100, a100, a800 or a10; with the model it gives step times, KV capacity and weights.
    hardware: str = ""
    tp: Count = 1
    pp: Count = 1
    #: What steps cost, as `penstock simulate --cost` takes it; empty: composed from hardware and model.
    cost: str = ""
    #: Tokens of KV that an instance holds; None: what memory leaves.
    kv_tokens: Count | None = None
    #: Share of a GPU's memory that the server may use.
    utilization: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    page_tokens: Count = 16
    block_tokens: Count = 64
    #: The policy row that composes steps; empty: the deployment's.
    compose: str = ""
    #: As in `penstock serve`; None: the policy row's.
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    max_num_queued_reqs: Count | None = None
    pipeline_depth: Count = 1
    #: What the policy reckons with; empty: with what steps do cost. And by how much it is wrong.
    predictor: str = ""
    predictor_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    #: Whether what steps take corrects it.
    correct: bool = True
    #: Seconds that a start takes beside loading the weights.
    start_s: Amount = 0.0


class DelaySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the front and messages take."""

    front_ms: Amount = 0.0
    front_us_per_token: Amount = 0.0
    dispatch_ms: Amount = 0.0
    token_ms: Amount = 0.0
    report_ms: Amount = 0.0
    peer_ms: Amount = 0.0
    pull_ms: Amount = 0.0


class FailureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance that fails, by its number over all pools; `down_s` None: it does not come back. `drain`: it is
    emptied instead, and goes once its requests have moved."""

    instance: Annotated[int, msgspec.Meta(ge=0)]
    at_s: Amount
    down_s: Amount | None = None
    drain: bool = False


class MoveSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What bounds moves, and what instances reckon that they cost; see `core.moves.MoveLimits`, whose defaults stand
    where None does."""

    #: Whether moves copy at all; else jobs are always computed again.
    copies: bool | None = None
    #: Jobs that arrive on an instance at the same time, and pages that one of them must leave free.
    arriving: Count | None = None
    spare_pages: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: Copies while the job goes on; 0: it stands still for all of it.
    stages: Annotated[int, msgspec.Meta(ge=0)] | None = None
    lease_s: Positive | None = None
    retry_ms: Positive | None = None
    #: What a copy takes, to begin with and for each token; None: from the delays, and from KV bytes and bandwidth.
    copy_ms: Amount | None = None
    copy_us_per_token: Amount | None = None
    #: What computing a token again counts for; None: several times what it adds to a step by the cost model.
    compute_us_per_token: Amount | None = None


class BalanceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Knobs of rebalancing; see `core.config.Balance`, whose defaults stand where None does."""

    out_tokens: float | None = None
    in_tokens: float | None = None
    period_ms: Positive | None = None
    dispatch: bool | None = None
    migration: bool | None = None
    defragmentation: bool | None = None
    scaling: bool | None = None
    instances_min: Count | None = None
    instances_max: Count | None = None
    low_tokens: float | None = None
    high_tokens: float | None = None
    scale_s: Positive | None = None
    scale_looks: Count | None = None
    urgent_tokens: Count | None = None


class WorkloadSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests in a few numbers: coefficient of variation of the gaps between them, mean and standard deviation of
    prompts and of answers, in tokens."""

    gap_cv: Amount
    input_mean: Positive
    input_std: Amount
    output_mean: Positive
    output_std: Amount


class PlannedSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment was planned for, for who serves and watches it."""

    #: What was typed, without where its results went.
    command: str
    #: Requests/s in all that it carries: this share keeps the SLO; and the share that kept it in the twin, if there is
    #: an SLO.
    rate: Positive
    target: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.9
    attained: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    workload: WorkloadSpec


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module's docstring."""

    model: str = ""
    policy: str = "fcfs"
    slo: str = ""
    pools: Annotated[list[PoolSpec], msgspec.Meta(min_length=1)]
    delays: DelaySpec = DelaySpec()
    #: Bandwidth over which all instances load their weights, GB/s; 0: loading takes no time.
    load_gb_per_s: Amount = 0.0
    #: Bandwidth of each instance's port, in and out alike, that its moves share, GB/s; 0: copies take no time.
    move_gb_per_s: Amount = 0.0
    moves: MoveSpec = MoveSpec()
    balance: BalanceSpec = BalanceSpec()
    #: Instances are ready when the run begins.
    warm: bool = True
    failures: list[FailureSpec] = []
    planned: PlannedSpec | None = None

    @staticmethod
    def read(path: str | Path) -> "Deployment":
        """From a YAML file. Raises ValueError that names the key that is wrong, and OSError."""
        try:
            deployment = _convert(yaml.safe_load(Path(path).read_text("utf-8")))
            deployment.check()
            return deployment
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not YAML: it is not even text") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def changed(self, pool: dict[str, Any], **whole: Any) -> "Deployment":
        """With values that are not None put over those of every pool, and of the whole."""
        pools = [msgspec.structs.replace(spec, **_given(pool)) for spec in self.pools]
        return msgspec.structs.replace(self, pools=pools, **_given(whole))

    def check(self) -> None:
        """Raises ValueError that names the key."""
        _convert(msgspec.to_builtins(self))
        row(self.policy)
        try:
            Slo.parse(self.slo)
        except ValueError as error:
            raise ValueError(f"slo: {error}") from None
        for number, pool in enumerate(self.pools):
            _check_pool(f"pools[{number}]", pool)
        _check_roles([pool.role for pool in self.pools])
        _check_balance(balance_of(self.balance))
        if self.move_gb_per_s and not self.model and self.moves.copies is not False:
            raise ValueError(
                "move_gb_per_s: without `model` nobody knows what a token carries: give it, or leave this out"
            )
        if len({pool.block_tokens for pool in self.pools}) > 1:
            raise ValueError("pools: all must have the same block_tokens, since the names of blocks are shared")
        count = sum(pool.instances for pool in self.pools)
        for number, failure in enumerate(self.failures):
            if failure.instance >= count:
                there = f"there is no instance {failure.instance}, they go from 0 to {count - 1}"
                raise ValueError(f"failures[{number}].instance: {there}")
            if failure.drain and failure.down_s is not None:
                raise ValueError(f"failures[{number}].down_s: an instance that drains does not come back: leave it out")


#: Key -> what stands below it.
_SPECS: dict[str, type[msgspec.Struct]] = {
    "pools": PoolSpec, "delays": DelaySpec, "failures": FailureSpec, "moves": MoveSpec, "balance": BalanceSpec,
    "planned": PlannedSpec, "planned.workload": WorkloadSpec,
}  # fmt: skip
#: What msgspec says, and what is said here.
_WORDS = {
    "Expected ": "must be ", " of length >= 1": ", with at least one entry", " >= ": ", at least ", " > ": ", above ",
    " <= ": ", at most ", " < ": ", below ", ", got ": ", not ", " - at key in $": "",
    "`object`": "a mapping", "`array`": "a list", "`object | null`": "a mapping",
    "`int | null`": "a whole number", "`float | null`": "a number", "`bool | null`": "true or false",
    "`int`": "a whole number", "`float`": "a number",
    "`str`": "text", "`bool`": "true or false", "`null`": "nothing", "`": "",
}  # fmt: skip


class LaidPool(msgspec.Struct, frozen=True):
    """Instances of one kind, by number: `first` and those after it."""

    title: str
    first: int
    instances: int
    #: Room for so many on each.
    kv_tokens: int
    #: Of each; 0 where the hardware is not said.
    gpus: int = 0


class Laid(msgspec.Struct, frozen=True):
    """A deployment, ready to be simulated."""

    sim: SimConfig
    #: Of each instance.
    costs: Sequence[Model]
    pools: list[LaidPool]


def lay_out(deployment: Deployment, cost: Model | None = None) -> Laid:
    """Instances, their costs and capacities; `cost` instead of what the pools say. Raises ValueError that says what to
    change."""
    deployment.check()
    members: list[MemberConfig] = []
    costs: list[Model] = []
    pools: list[LaidPool] = []
    for number, pool in enumerate(deployment.pools):
        here = cost if cost is not None else _cost(deployment, number)
        member = _member(deployment, pool, here)
        title = _title(deployment, pool, fitted=cost is not None)
        room = member.instance.pages * pool.page_tokens
        gpus = pool.tp * pool.pp if pool.hardware else 0
        pools.append(LaidPool(title, len(members), pool.instances, room, gpus))
        members += [member] * pool.instances
        costs += [here] * pool.instances
    queued = max(member.instance.limits.max_num_queued for member in members)
    balance = balance_of(deployment.balance)
    sim = SimConfig(
        members=members,
        cluster=ClusterConfig(policy=deployment.policy, max_num_queued=queued, balance=balance),
        delays=_delays(deployment.delays),
        load_bytes_per_s=deployment.load_gb_per_s * GB,
        move_bytes_per_s=deployment.move_gb_per_s * GB,
        warm=deployment.warm,
        failures=[_failure(failure) for failure in deployment.failures],
    )
    return Laid(sim, costs, pools)


def _delays(spec: DelaySpec) -> Delays:
    return Delays(
        front=round(spec.front_ms * MS),
        front_per_token=spec.front_us_per_token * US,
        dispatch=round(spec.dispatch_ms * MS),
        token=round(spec.token_ms * MS),
        report=round(spec.report_ms * MS),
        peer=round(spec.peer_ms * MS),
        pull=round(spec.pull_ms * MS),
    )


def balance_of(spec: BalanceSpec) -> Balance:
    """As the core takes it."""
    given = _given(msgspec.structs.asdict(spec))
    for name, core, unit in (("period_ms", "period_ns", MS), ("scale_s", "scale_ns", SECOND)):
        if name in given:
            given[core] = round(given.pop(name) * unit)
    return Balance(**given)


def _moves(deployment: Deployment, cost: Model, kv_bytes_per_token: int) -> MoveLimits:
    """Bounds as given. Costs as given, or by the cost model, the bandwidth and the delays."""
    spec, delays, per_s = deployment.moves, deployment.delays, deployment.move_gb_per_s * GB
    # The source tells how far it is, the destination that it has it.
    copy_ns = (2 * delays.peer_ms + delays.pull_ms if spec.copy_ms is None else spec.copy_ms) * MS
    copied_ns = kv_bytes_per_token / per_s * SECOND if per_s else 0.0
    computed_ns = _HELD_UP * _position_ns(cost)
    given = {
        "copies": spec.copies,
        "arriving": spec.arriving,
        "spare_pages": spec.spare_pages,
        "stages": spec.stages,
        "lease_ns": None if spec.lease_s is None else round(spec.lease_s * SECOND),
        "retry_ns": None if spec.retry_ms is None else round(spec.retry_ms * MS),
        "copy_ns": copy_ns,
        "copy_position_ns": copied_ns if spec.copy_us_per_token is None else spec.copy_us_per_token * US,
        "compute_position_ns": computed_ns if spec.compute_us_per_token is None else spec.compute_us_per_token * US,
    }
    return MoveLimits(**_given(given))


def _position_ns(cost: Model) -> float:
    """What a position more of a prompt adds to a step, where prompts have hundreds."""
    fewer, more = (cost.step_ns(Features(n, n * (n + 1) // 2, 0, 0, 1)) for n in (256, 768))
    return max(0.0, (more - fewer) / 512)


def _cost(deployment: Deployment, number: int) -> Model:
    pool = deployment.pools[number]
    if pool.cost:
        cost = named.resolve(pool.cost).cost
        for key in ("tp", "pp"):
            own, said = getattr(cost, key, None), getattr(pool, key)
            if own not in (None, said):
                raise ValueError(
                    f"pools[{number}].{key}: it is {said}, but {pool.cost} is of {key} {own}; make it {own}"
                )
        return cost
    _need(deployment, pool, "step times", "cost")
    return named.resolve(f"{pool.hardware}/{deployment.model}/tp{pool.tp}/pp{pool.pp}").cost


def _member(deployment: Deployment, pool: PoolSpec, cost: Model) -> MemberConfig:
    limits = row(pool.compose or deployment.policy).limits
    changes = {
        "max_num_seqs": pool.max_num_seqs,
        "max_num_batched_tokens": pool.max_num_batched_tokens,
        "max_num_queued": pool.max_num_queued_reqs,
    }
    limits = msgspec.structs.replace(limits, **_given(changes))
    shape = shapes.named(deployment.model) if deployment.model else None
    kv_bytes_per_token = shape.kv_bytes_per_token if shape is not None else 0
    instance = InstanceConfig(
        policy=deployment.policy,
        compose=pool.compose,
        pages=_kv_tokens(deployment, pool, limits) // pool.page_tokens,
        page_tokens=pool.page_tokens,
        block_tokens=pool.block_tokens,
        depth=pool.pipeline_depth,
        stages=pool.pp,
        limits=limits,
        correct=pool.correct,
        role=pool.role,
        moves=_moves(deployment, cost, kv_bytes_per_token),
    )
    return MemberConfig(
        instance=instance,
        predictor=_predictor(pool, cost),
        load_bytes=shape.weight_bytes if shape is not None else 0,
        start_ns=round(pool.start_s * SECOND),
        kv_bytes_per_token=kv_bytes_per_token,
    )


def _kv_tokens(deployment: Deployment, pool: PoolSpec, limits: Limits) -> int:
    if pool.kv_tokens is not None:
        return pool.kv_tokens
    _need(deployment, pool, "the KV capacity", "kv_tokens")
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
    return Failure(instance=spec.instance, at_ns=round(spec.at_s * SECOND), down_ns=down_ns, drain=spec.drain)


def _need(deployment: Deployment, pool: PoolSpec, what: str, instead: str) -> None:
    if not deployment.model or not pool.hardware:
        raise ValueError(
            f"{what} cannot be worked out without `model` and a pool's `hardware`: give both, or `{instead}`"
        )


def _title(deployment: Deployment, pool: PoolSpec, fitted: bool) -> str:
    """What an instance is, in a few words."""
    steps = "fitted step times" if fitted else f"step times of {pool.cost}" if pool.cost else ""
    what = f"{deployment.model or 'a model'} on {pool.hardware}" if pool.hardware else deployment.model
    what += f" for {pool.role}" * bool(pool.role)
    parallel = f" tp {pool.tp}" * (pool.tp > 1) + f" pp {pool.pp}" * (pool.pp > 1)
    return ", ".join(filter(None, (what, steps))) + parallel


def _check_roles(roles: Sequence[str]) -> None:
    for one, other in (("prefill", "decode"), ("decode", "prefill")):
        if set(roles) == {one}:
            raise ValueError(f"pools: all have the role {one}: give one the role {other}, or none")


def _check_balance(balance: Balance) -> None:
    if balance.out_tokens > balance.in_tokens:
        raise ValueError(
            f"balance.in_tokens: {balance.in_tokens:g} must be at least out_tokens, which is {balance.out_tokens:g}: "
            "else jobs go back and forth"
        )
    if balance.low_tokens > balance.high_tokens:
        raise ValueError(
            f"balance.high_tokens: {balance.high_tokens:g} must be at least low_tokens, which is {balance.low_tokens:g}"
        )
    if balance.instances_min > balance.instances_max:
        raise ValueError(
            f"balance.instances_max: {balance.instances_max} must be at least instances_min, "
            f"which is {balance.instances_min}"
        )


def _check_pool(where: str, pool: PoolSpec) -> None:
    if pool.role not in ROLES:
        raise ValueError(f"{where}.role: {pool.role!r} must be prefill or decode; leave it out for both")
    if pool.hardware:
        hardware.named(pool.hardware)
    if pool.compose:
        row(pool.compose)
    if pool.block_tokens % pool.page_tokens:
        raise ValueError(
            f"{where}.block_tokens: {pool.block_tokens} must be a multiple of page_tokens, which is {pool.page_tokens}"
        )
    if pool.kv_tokens is not None and pool.kv_tokens < pool.page_tokens:
        raise ValueError(
            f"{where}.kv_tokens: {pool.kv_tokens} is less than a page, which has {pool.page_tokens} tokens"
        )


def _convert(read: Any) -> Deployment:
    """What was read, checked. Raises ValueError that names the key."""
    if not isinstance(read, dict):
        raise ValueError("a deployment is a mapping with `pools:`, a list with at least one pool")
    for key, value in _numbers(read, ""):
        if not math.isfinite(value):
            raise ValueError(f"{key}: {value} is no number that can be used")
    try:
        return msgspec.convert(read, Deployment)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error))) from None


def _numbers(read: Any, key: str) -> Iterator[tuple[str, float]]:
    """All floats, with the names of their keys."""
    if isinstance(read, float):
        yield key, read
    elif isinstance(read, dict):
        for name, value in read.items():
            yield from _numbers(value, f"{key}.{name}".lstrip("."))
    elif isinstance(read, list):
        for number, value in enumerate(read):
            yield from _numbers(value, f"{key}[{number}]")


def _in_words(error: str) -> str:
    """msgspec's message with the key in front, and the keys that there are where one is unknown."""
    what, _, where = error.partition(" - at `$")
    key = where.strip(".`")
    if unknown := re.search(r"unknown field `(.*)`", what):
        spec = _SPECS.get(key.partition("[")[0], Deployment)
        known = ", ".join(spec.__struct_fields__)
        return f"{f'{key}: ' * bool(key)}there is no key `{unknown[1]}`; the keys are {known}"
    if missing := re.search(r"missing required field `(.*)`", what):
        return f"{f'{key}: ' * bool(key)}the key `{missing[1]}` must be given"
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    return f"{key or 'a key'}: {what}"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
