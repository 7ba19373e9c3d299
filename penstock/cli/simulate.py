"""Run the same scheduler over a workload in simulated time; the report is that of `penstock bench serve`.

    penstock simulate --cost-from run.log.instance0 --dataset-name trace --dataset-path azure.csv --goodput ttft:500
    penstock simulate --cost-from run.log.instance0 --against live.json       the requests of a live run, side by side

Step times are those of a recorded run, fitted (`cost.linear`), or given.
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from penstock.cli import bench
from penstock.core.instance import InstanceConfig
from penstock.core.slo import Slo
from penstock.cost.linear import Linear, fit, relative_error
from penstock.drivers.log import Observed, observe
from penstock.drivers.sim import Delays, Simulation, alike
from penstock.metrics import report, result
from penstock.metrics.record import COMPLETED, Record
from penstock.metrics.summary import summarize
from penstock.policies.bundles import ROWS, row
from penstock.workload.trace import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    system = parser.add_argument_group("system")
    system.add_argument("--cost-from", type=Path, metavar="LOG", help="fit step times, and take the sizes, from here")
    system.add_argument("--cost", help="ns: a step, a prompt token, its context, a decode, its context (5 numbers)")
    system.add_argument("--policy", choices=sorted(ROWS), help="default: the log's, else fcfs")
    system.add_argument("--instances", type=int, default=1)
    system.add_argument("--kv-pages", type=int, help="default: the log's, else 4096")
    system.add_argument("--max-num-seqs", type=int)
    system.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--against", type=Path, metavar="JSON", help="a saved live run: same requests, side by side")
    bench.workload_arguments(parser.add_argument_group("workload"))
    bench.arrival_arguments(parser.add_argument_group("arrivals"))
    bench.report_arguments(parser.add_argument_group("report"))
    bench.result_arguments(parser.add_argument_group("output"))


def main(args: argparse.Namespace) -> int:
    """0 if any request was served."""
    seen = observe(args.cost_from) if args.cost_from else None
    cost, notes = _cost(args, seen)
    delay_ns = round(median(seen.delays)) if seen and seen.delays else 0
    delays = Delays(dispatch=delay_ns, token=delay_ns)
    config = alike(_instance(args, seen), args.instances, delays=delays)
    live = result.load(args.against) if args.against else None
    requests = _requests_of(live.records) if live else bench.workload(args)[0]
    began = time.perf_counter()
    records = Simulation(config, cost).run(requests)
    took_s = time.perf_counter() - began
    notes.append(f"Simulated {len(records)} requests in {took_s:.2f} s, {len(records) / took_s:.0f} a second.")
    for record in records:
        record.idle_ttft_ns, record.idle_tpot_ns = cost.request_ns(record.prompt_tokens, record.output_tokens)
    return _conclude(args, records, live, notes)


def _cost(args: argparse.Namespace, seen: Observed | None) -> tuple[Linear, list[str]]:
    if args.cost:
        return Linear(*map(float, args.cost.split(","))), []
    if seen is None:
        raise ValueError("step times are needed: --cost-from LOG (see `penstock serve --record`) or --cost")
    cost = fit(seen.steps)
    errors = sorted(relative_error(cost, seen.steps))
    middle, p90 = errors[len(errors) // 2], errors[len(errors) * 9 // 10]
    return cost, [
        f"Step times fitted to {len(errors)} steps of {args.cost_from}: "
        f"relative error median {100 * middle:.1f} %, P90 {100 * p90:.1f} %."
    ]


def _instance(args: argparse.Namespace, seen: Observed | None) -> InstanceConfig:
    """The log's configuration, or the policy row's defaults, with what the flags change."""
    config = seen.config if seen else InstanceConfig(pages=4096)
    if args.policy or not seen:
        policy = args.policy or config.policy
        config = msgspec.structs.replace(config, policy=policy, limits=row(policy).limits)
    limits: dict[str, Any] = {
        name: getattr(args, name) for name in ("max_num_seqs", "max_num_batched_tokens") if getattr(args, name)
    }
    return msgspec.structs.replace(
        config, pages=args.kv_pages or config.pages, limits=msgspec.structs.replace(config.limits, **limits)
    )


def _requests_of(records: list[Record]) -> list[Request]:
    """The requests of a live run, with the lengths that their answers turned out to have."""
    return [
        Request(
            arrival_s=record.scheduled_ns / 1e9,
            prompt_tokens=record.prompt_tokens,
            output_tokens=record.output_tokens,
            slo=record.slo,
        )
        for record in sorted(records, key=lambda r: r.scheduled_ns)
        if record.outcome == COMPLETED
    ]


def _conclude(args: argparse.Namespace, records: list[Record], live: result.Result | None, notes: list[str]) -> int:
    promised = live.summary.goodput.slo if live and live.summary.goodput else Slo()
    slo = Slo.parse(" ".join(args.goodput)) or promised
    summary = summarize(records, slo, percentiles=args.metric_percentiles, **args.warmup)
    if live:
        lived = summarize(live.records, slo, percentiles=args.metric_percentiles, **args.warmup)
        print("\n".join([report.compare(lived, summary, metrics=args.percentile_metrics), *notes]))
    else:
        print(report.render(summary, title="Simulated", metrics=args.percentile_metrics, notes=notes))
    path = os.path.join(args.result_dir, args.result_filename or "simulated.json")
    if args.save_result:
        result.save(result.Result(run={"simulated": True, "notes": notes}, summary=summary, records=records), path)
        print(f"Every request is in {path}")
    if args.plot is not None:
        bench.draw(records, slo, args.plot or os.path.splitext(path)[0] + ".png")
    return 0 if any(record.outcome == COMPLETED for record in records) else 1
