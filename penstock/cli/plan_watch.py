"""`penstock plan --watch`: say when a workload is not what was planned for, and what a new plan would change."""

import argparse
import contextlib
import io
import shlex
import tempfile
import time
from math import log, sqrt
from pathlib import Path

import msgspec

from penstock.cli import plan
from penstock.drivers.deployment import Deployment, PlannedSpec, PoolSpec
from penstock.plan import finalists, observed
from penstock.plan.observed import Observed
from penstock.plan.space import Option

#: Gaps that vary less are even.
_EVEN = 0.05
_WIDTH = 36


def main(args: argparse.Namespace) -> int:
    """With --once 1 if the workload drifted; else 0 once it is interrupted. Raises OSError if the server goes away."""
    if not (args.watch and args.plan):
        raise ValueError("give both, the server and its plan: penstock plan --watch URL plan.yaml")
    if not args.interval > 0 or not args.drift > 0:
        raise ValueError(f"--interval {args.interval:g} --drift {args.drift:g}: both must be above 0")
    deployment = Deployment.read(args.plan)
    if deployment.planned is None:
        raise ValueError(f"{args.plan} has no `planned:`, so who knows what for; `penstock plan --output` writes it")
    try:
        return _watch(args, deployment, deployment.planned)
    except KeyboardInterrupt:
        return 0


def _watch(args: argparse.Namespace, deployment: Deployment, planned: PlannedSpec) -> int:
    first = observed.look(args.watch)
    #: What the last search was for: it is not repeated until that has changed as well.
    searched = planned
    while True:
        time.sleep(args.interval)
        second = observed.look(args.watch)
        seen = observed.between(first, second)
        changes = observed.drift(planned, seen, args.drift)
        print(f"{time.strftime('%H:%M:%S')} {seen}: {'; '.join(changes) if changes else 'as planned'}", flush=True)
        if changes and seen.workload is not None and observed.drift(searched, seen, args.drift):
            searched = msgspec.structs.replace(planned, rate=seen.rate, workload=seen.workload)
            print(compare(deployment, planned, seen, args), flush=True)
        if args.once:
            return int(bool(changes))
        first = second


def compare(deployment: Deployment, planned: PlannedSpec, seen: Observed, args: argparse.Namespace) -> str:
    """What is served, and what the same search finds for what was seen, side by side."""
    flags = flags_for(planned, seen)
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "plan.yaml"
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = plan.main(parsed([*flags, "--output", str(path), "--jobs", str(args.jobs), "--disable-tqdm"]))
            _, _, terms = plan.asked(parsed(flags))
        new = Deployment.read(path) if status == 0 else None
    share = None
    if terms.goal.slo:
        served = Option(name="as served", gpus=_gpus(deployment), deployment=deployment, knobs={})
        share = finalists.attained(served, 1, seen.rate, terms)
    if new is None:
        return (
            f"Nothing better was found: {said.getvalue().strip().splitlines()[-1]} Attained as served: {_part(share)}"
        )
    attained = new.planned.attained if new.planned is not None else None
    rows = [("", "as served", "planned anew"), *_rows(deployment, new), ("attained", _part(share), _part(attained))]
    lines = [f"{name:10} {old:{_WIDTH}} {now}".rstrip() for name, old, now in rows]
    same = [] if new.pools != deployment.pools or new.policy != deployment.policy else ["A new plan would be the same."]
    return "\n".join([*lines, *same])


def flags_for(planned: PlannedSpec, seen: Observed) -> list[str]:
    """The flags of the plan, but for the workload that was seen: its rate, the CV of its gaps, and lengths that are
    lognormal with its means and standard deviations."""
    workload = seen.workload
    assert workload is not None, "there is none to plan for"
    args = parsed(shlex.split(planned.command)[2:])
    args.trace, args.rate = None, seen.rate
    args.lengths = _lengths(workload.input_mean, workload.input_std)
    args.output_lengths = _lengths(workload.output_mean, workload.output_std)
    even = workload.gap_cv < _EVEN
    args.arrival, args.cv = ("constant", 1.0) if even else ("gamma", workload.gap_cv)
    return shlex.split(plan.command(args))[2:]


def parsed(flags: list[str]) -> argparse.Namespace:
    """As `penstock plan` understands them. Raises ValueError for flags that it does not have."""
    parser = argparse.ArgumentParser(prog="penstock plan", exit_on_error=False)
    plan.add_arguments(parser)
    try:
        args, unknown = parser.parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise ValueError(f"planned.command: {error}") from None
    if unknown:
        raise ValueError(f"planned.command: there is no flag {unknown[0]}")
    return args


def _lengths(mean: float, std: float) -> str:
    if std < 0.01 * mean:
        return f"fixed:{max(1, round(mean))}"
    return f"lognormal:{mean:.6g}:{sqrt(log(1 + (std / mean) ** 2)):.4g}"


def _rows(old: Deployment, new: Deployment) -> list[tuple[str, str, str]]:
    rows = [("policy", old.policy, new.policy), ("GPUs", str(_gpus(old)), str(_gpus(new)))]
    for number in range(max(len(old.pools), len(new.pools))):
        pools = [_pool(d.pools[number]) if number < len(d.pools) else "" for d in (old, new)]
        rows.append((f"pool {number}", pools[0], pools[1]))
    return rows


def _pool(pool: PoolSpec) -> str:
    limits = "".join(
        f" {key}={value}"
        for key in ("max_num_seqs", "max_num_batched_tokens", "kv_tokens")
        if (value := getattr(pool, key)) is not None
    )
    return f"{pool.instances} x {pool.role or 'both'} tp{pool.tp} pp{pool.pp}{limits}"


def _gpus(deployment: Deployment) -> int:
    return sum(pool.instances * pool.tp * pool.pp for pool in deployment.pools)


def _part(share: float | None) -> str:
    return "no SLO" if share is None else f"{100 * share:.1f} %"
