"""A deployment file for a live server: the same that the simulator takes, and that `penstock plan` writes.

What it says of instances, roles, policy and balance is served; what it says of hardware, step times, delays and
failures describes a machine, and here the machine is this one. A plan is served with the model that it was made for.
"""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.config import Balance
from penstock.cost import shapes
from penstock.drivers.deployment import BalanceSpec, Deployment, PoolSpec, balance_of
from penstock.engine.hub import resolve

#: Key of a pool -> the flag of `penstock serve` that it sets.
_FLAGS = {
    "tp": "tensor_parallel_size",
    "page_tokens": "page_tokens",
    "block_tokens": "block_tokens",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_queued_reqs": "max_num_queued_reqs",
    "pipeline_depth": "pipeline_depth",
    "utilization": "gpu_memory_utilization",
    "compose": "compose",
}
#: Keys that say what the machine is and does; the machine that serves knows that itself.
_OF_POOLS = ("hardware", "cost", "predictor", "predictor_factor", "correct", "start_s")
_OF_THE_WHOLE = ("delays", "load_gb_per_s", "move_gb_per_s", "moves", "warm", "failures")


def flags(deployment: Deployment) -> dict[str, Any]:
    """Defaults for the flags of `penstock serve`. Raises ValueError naming the key that a live server cannot have."""
    first = deployment.pools[0]
    for number, pool in enumerate(deployment.pools):
        _check(number, pool, first)
    values = {flag: getattr(first, key) for key, flag in _FLAGS.items()}
    if first.kv_tokens is not None:
        values["kv_pages"] = first.kv_tokens // first.page_tokens
    values |= {"model": deployment.model, "policy": deployment.policy, "slo": deployment.slo}
    return {flag: value for flag, value in values.items() if value not in (None, "")}


def roles(deployment: Deployment) -> tuple[str, ...]:
    """The role of each instance, in order."""
    return tuple(pool.role for pool in deployment.pools for _ in range(pool.instances))


def balance(args: argparse.Namespace, deployment: Deployment | None) -> Balance:
    """The knobs of rebalancing: the file's, and those of `--balance` over them. Raises ValueError naming the key."""
    known = BalanceSpec.__struct_fields__
    given = {} if deployment is None else msgspec.structs.asdict(deployment.balance)
    for item in filter(None, args.balance.replace(" ", ",").split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            raise ValueError(f"--balance {item}: there is no such knob; there are {', '.join(known)}")
        given[key] = {"true": True, "false": False}.get(value, value)
    try:
        return balance_of(msgspec.convert(given, BalanceSpec, strict=False))
    except msgspec.ValidationError as error:
        raise ValueError(f"--balance {args.balance}: {error}") from None


def unserved(deployment: Deployment) -> list[str]:
    """Keys in use that say something of a machine, and nothing to a live server."""
    pools = [f"pools.{key}" for key in _OF_POOLS if any(_differs(pool, key) for pool in deployment.pools)]
    return pools + [key for key in _OF_THE_WHOLE if _differs(deployment, key)]


def model(deployment: Deployment, args: argparse.Namespace) -> str:
    """What to serve. Raises ValueError where that has no weights, or is not what was planned for, OSError where it is
    not there."""
    planned, given = deployment.model, str(args.model)
    named = planned in shapes.NAMED and not Path(planned).is_dir()
    if args.engine == "null":
        return "" if named and given == planned else given
    if given == planned:
        if named:
            raise ValueError(
                f"model: {planned} is a name for sizes, and weights are needed: give the folder or hub id of that "
                "model, as in `penstock serve FOLDER --plan plan.yaml`"
            )
        return given
    if deployment.planned is not None and (named or Path(planned).is_dir()):
        _compare(planned, given, shapes.named(str(resolve(given, args.download_dir, weights=False))))
    return given


def _compare(planned: str, given: str, served: shapes.Shape) -> None:
    there = shapes.named(planned)
    names = [name for name in there.__struct_fields__ if getattr(there, name) != getattr(served, name)]
    if names:
        sizes = ", ".join(f"{name} {getattr(served, name)} instead of {getattr(there, name)}" for name in names)
        raise ValueError(
            f"model: the plan was made for {planned}, and {given} is another: {sizes}; serve that, or plan for this "
            f"with `penstock plan --model {given}`"
        )


def _differs(struct: msgspec.Struct, key: str) -> bool:
    """Whether a key is not at its default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(type(struct))}
    default = defaults[key]
    return bool(getattr(struct, key) != default) if default is not msgspec.NODEFAULT else bool(getattr(struct, key))


def _check(number: int, pool: PoolSpec, first: PoolSpec) -> None:
    if pool.pp > 1:
        raise ValueError(
            f"pools[{number}].pp: {pool.pp} stages are simulated only; a live instance has 1, use tp (`penstock plan "
            "--servable` leaves the others out)"
        )
    for key in (*_FLAGS, "kv_tokens"):
        here, there = getattr(pool, key), getattr(first, key)
        if here != there:
            raise ValueError(
                f"pools[{number}].{key}: it is {here}, but {there} in the first pool; live instances are alike but for "
                "their role (`penstock plan --servable` leaves the others out)"
            )
