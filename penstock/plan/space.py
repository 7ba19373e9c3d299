"""Which deployments there are to choose from: every way to lay a model on a cluster's GPUs, and what speaks against it.

An option is the smallest unit of a deployment, to be repeated as often as the load needs: instances that do both
phases, or, for a row that hands jobs over, instances for prompts and instances for decoding. Its parallelism goes
through the divisors of heads (tp) and layers (pp). Node affinity says where the two sides may lie: `high`, anywhere,
the network being as good between nodes as KV needs; `low`, the stages that hold the same layers share a node, so that
KV never leaves it (both as in Zhong et al., DistServe, OSDI 2024). What does not fit, or has no step times, is an
option with a reason.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import gcd
from typing import Any

import msgspec

from penstock.core.slo import Slo
from penstock.cost import hardware, shapes
from penstock.drivers.deployment import GB, DelaySpec, Deployment, Laid, MoveSpec, PoolSpec, lay_out
from penstock.policies.bundles import row

#: Rows that hand jobs over after the prompt.
SPLIT_ROWS = ("distserve", "adaptive-pd")
AFFINITIES = ("high", "low")
SIDES = ("prefill", "decode")
#: Hardware without a data sheet.
CPU = "cpu"


class Cluster(msgspec.Struct, frozen=True):
    """GPUs of one kind on nodes of one size."""

    #: Empty where nothing is known of it.
    hardware: str
    node_gpus: int
    nodes: int = 1

    @property
    def gpus(self) -> int:
        return self.node_gpus * self.nodes

    @staticmethod
    def parse(text: str) -> "Cluster":
        """`h200:8x2`: two nodes with eight GPUs each; `h200:8`: one. `cpu:1` is no hardware that is known: step times
        and KV must be given. Raises ValueError."""
        match = re.fullmatch(r"([a-z0-9]+):([1-9]\d*)(?:x([1-9]\d*))?", text)
        if match is None:
            raise ValueError(f"hardware {text!r}: write NAME:GPUS or NAME:GPUSxNODES, as in h200:8x2")
        if match[1] != CPU:
            hardware.named(match[1])
        return Cluster("" if match[1] == CPU else match[1], int(match[2]), int(match[3] or 1))


class Pair(msgspec.Struct, frozen=True, order=True):
    """Parallelism of both sides; `cross` nodes hold a pipeline's segments."""

    prefill_tp: int
    prefill_pp: int
    decode_tp: int
    decode_pp: int
    cross: int = 1

    @property
    def gpus(self) -> tuple[int, int]:
        """Of an instance for prompts, and of one for decoding."""
        return self.prefill_tp * self.prefill_pp, self.decode_tp * self.decode_pp


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be searched."""

    model: str
    cluster: Cluster
    slo: Slo
    policies: Sequence[str] = ("fcfs", "distserve")
    affinity: str = "high"
    #: Only these, of those that divide heads and layers; empty: all.
    tps: Sequence[int] = ()
    pps: Sequence[int] = ()
    #: Instances for prompts to instances for decoding.
    ratios: Sequence[tuple[int, int]] = ((1, 1), (2, 1), (1, 2))
    #: Instances of a unit that does both.
    replicas: Sequence[int] = (1,)
    #: Key of a pool, or of one side as in `decode.max_num_seqs` -> values to try.
    knobs: Mapping[str, Sequence[Any]] = {}
    #: The same with one value each, which says nothing in names.
    pool: Mapping[str, Any] = {}
    #: A name for step times, with {tp} and {pp} in it; empty: composed from hardware and model.
    cost: str = ""
    #: GB/s of an instance's port; None: by the links that its KV takes.
    move_gb_per_s: float | None = None
    moves: MoveSpec = MoveSpec()
    delays: DelaySpec = DelaySpec()


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A unit that might be deployed."""

    #: Says all that sets it apart; fit for a folder.
    name: str
    gpus: int
    deployment: Deployment
    knobs: dict[str, Any]
    #: Why it cannot be; empty where it can.
    reason: str = ""

    @property
    def split(self) -> bool:
        return len(self.deployment.pools) > 1

    def lay_out(self) -> Laid:
        return lay_out(self.deployment)


def options(space: Space) -> list[Option]:
    """All of them, each once, in a fixed order. Raises ValueError for a space that makes no sense."""
    _check(space)
    found: dict[str, Option] = {}
    for policy in space.policies:
        units = _split(space) if policy in SPLIT_ROWS else _mixed(space)
        for (pools, port), values in product(units, _settings(space.knobs)):
            option = _option(space, policy, pools, port, values)
            found.setdefault(option.name, option)
    return list(found.values())


def repeated(option: Option, times: int) -> Deployment:
    """The unit so often, as one deployment."""
    pools = [msgspec.structs.replace(pool, instances=times * pool.instances) for pool in option.deployment.pools]
    return msgspec.structs.replace(option.deployment, pools=pools)


def as_one(option: Option, times: int) -> Option:
    """The unit so often, as one option."""
    if times == 1:
        return option
    return msgspec.structs.replace(
        option, name=f"{times}x {option.name}", gpus=times * option.gpus, deployment=repeated(option, times)
    )


def pairs(space: Space) -> list[Pair]:
    """One instance for prompts and one for decoding on the cluster's GPUs, as DistServe's search enumerates them."""
    cluster, low = space.cluster, space.affinity == "low"
    most = cluster.node_gpus if low else cluster.gpus
    found = []
    for cross in range(1, cluster.nodes + 1 if low else 2):
        sides = [(tp, pp) for tp, pp in _parallel(space, most, cross) if tp * pp < most]
        for prefill, decode in product(sides, sides):
            if prefill[0] * prefill[1] + decode[0] * decode[1] <= most:
                found.append(Pair(prefill[0], prefill[1] * cross, decode[0], decode[1] * cross, cross))
    return found


def _parallel(space: Space, most: int, cross: int = 1) -> list[tuple[int, int]]:
    """(tp, pp) with up to `most` GPUs on each of `cross` nodes; pp is of one node."""
    shape = shapes.named(space.model)
    tps = [tp for tp in _divisors(shape.heads, most) if not space.tps or tp in space.tps]
    pps = [pp for pp in range(1, most + 1) if shape.layers % (pp * cross) == 0]
    return [(tp, pp) for tp, pp in product(tps, pps) if tp * pp <= most and (not space.pps or pp * cross in space.pps)]


def _divisors(number: int, most: int) -> list[int]:
    return [one for one in range(1, most + 1) if number % one == 0]


#: Pools, and bytes/s of an instance's port, None where nothing moves.
_Unit = tuple[list[PoolSpec], float | None]


def _mixed(space: Space) -> Iterator[_Unit]:
    for (tp, pp), instances in product(_parallel(space, space.cluster.gpus), space.replicas):
        if instances * tp * pp <= space.cluster.gpus:
            yield [_pool(space, "", instances, tp, pp)], None


def _split(space: Space) -> Iterator[_Unit]:
    cluster, gpu = space.cluster, hardware.named(space.cluster.hardware) if space.cluster.hardware else None
    for pair, (first, second) in product(pairs(space), space.ratios):
        prefill, decode = first // gcd(first, second), second // gcd(first, second)
        gpus = prefill * pair.gpus[0] + decode * pair.gpus[1]
        segment = gpus // pair.cross
        if gpus > cluster.gpus or (space.affinity == "low" and segment > cluster.node_gpus):
            continue
        near = space.affinity == "low" or gpus <= cluster.node_gpus
        # Each GPU sends its part; the side with fewer of them is the narrower.
        port = (gpu.link if near else gpu.inter_node_link) * min(pair.gpus) if gpu is not None else None
        yield (
            [
                _pool(space, "prefill", prefill, pair.prefill_tp, pair.prefill_pp),
                _pool(space, "decode", decode, pair.decode_tp, pair.decode_pp),
            ],
            port,
        )


def _pool(space: Space, role: str, instances: int, tp: int, pp: int) -> PoolSpec:
    cost = space.cost.format(tp=tp, pp=pp)
    pool = PoolSpec(role=role, instances=instances, hardware=space.cluster.hardware, tp=tp, pp=pp, cost=cost)
    return _turned(pool, space.pool)


def _settings(knobs: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(knobs, values, strict=True)) for values in product(*knobs.values())]


def _option(space: Space, policy: str, pools: Sequence[PoolSpec], port: float | None, values: dict[str, Any]) -> Option:
    pools = [_turned(pool, values) for pool in pools]
    move = space.move_gb_per_s if space.move_gb_per_s is not None else (port or 0.0) / GB
    deployment = Deployment(
        model=space.model, policy=policy, slo=str(space.slo), pools=pools, delays=space.delays,
        move_gb_per_s=move if len(pools) > 1 else 0.0, moves=space.moves,
    )  # fmt: skip
    return Option(
        name=",".join([policy, *map(_said, pools), *(f"{key}={value}" for key, value in values.items())]),
        gpus=sum(pool.instances * pool.tp * pool.pp for pool in pools),
        deployment=deployment,
        knobs=values,
        reason=_reason(deployment),
    )


def _turned(pool: PoolSpec, values: Mapping[str, Any]) -> PoolSpec:
    """With the knobs that are of its side, or of all."""
    own = {key.rpartition(".")[2]: value for key, value in values.items() if key.rpartition(".")[0] in ("", pool.role)}
    return msgspec.structs.replace(pool, **own)


def _said(pool: PoolSpec) -> str:
    """`p=2xtp2pp1`."""
    return f"{pool.role[:1] or 'i'}={pool.instances}xtp{pool.tp}pp{pool.pp}"


def _reason(deployment: Deployment) -> str:
    try:
        lay_out(deployment)
    except ValueError as error:
        return str(error)
    return ""


def _check(space: Space) -> None:
    if space.affinity not in AFFINITIES:
        raise ValueError(f"affinity {space.affinity!r}: choose {' or '.join(AFFINITIES)}")
    for policy in space.policies:
        row(policy)
    for key in (*space.knobs, *space.pool):
        side, _, name = key.rpartition(".")
        if side not in ("", *SIDES) or name not in PoolSpec.__struct_fields__:
            raise ValueError(
                f"knob {key!r}: write KEY=VALUE,VALUE with a key of a pool, or prefill.KEY and decode.KEY; keys are "
                f"{', '.join(PoolSpec.__struct_fields__)}"
            )
