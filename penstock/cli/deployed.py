"""A deployment file for a live server: the same that the simulator takes.

What it says of instances, roles, policy and balance is served; what it says of hardware, step times, delays and
failures describes a machine, and here the machine is this one.
"""

import argparse
from typing import Any

import msgspec

from penstock.core.cluster import Balance
from penstock.drivers.deployment import BalanceSpec, Deployment, PoolSpec, balance_of

#: Key of a pool -> the flag of `penstock serve` that it sets.
_FLAGS = {
    "tp": "tensor_parallel_size",
    "page_tokens": "page_tokens",
    "block_tokens": "block_tokens",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_queued_reqs": "max_num_queued_reqs",
    "pipeline_depth": "pipeline_depth",
    "compose": "compose",
}


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


def _check(number: int, pool: PoolSpec, first: PoolSpec) -> None:
    if pool.pp > 1:
        raise ValueError(f"pools[{number}].pp: {pool.pp} stages are simulated only; a live instance has 1, use tp")
    for key in (*_FLAGS, "kv_tokens"):
        here, there = getattr(pool, key), getattr(first, key)
        if here != there:
            raise ValueError(
                f"pools[{number}].{key}: it is {here}, but {there} in the first pool; live instances are alike but for "
                "their role"
            )
