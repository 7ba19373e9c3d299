"""Run the same scheduler over a workload in simulated time; the report is that of `penstock bench serve`.

    penstock simulate --config deployment.yaml --dataset-name trace --dataset-path mooncake.jsonl --goodput ttft:500
    penstock simulate --hardware h200 --model llama-3.1-8b --instances 8 --request-rate 20
    penstock simulate --cost cost.json --kv-tokens 65536 --request-rate 4     step times from `penstock fit`
    penstock simulate --cost-from run.log.instance0 --against live.json       the requests of a live run, side by side

Flags win over the file. --cost takes a file of `penstock fit`, a name (`penstock fit --list`) such as h200/opt-13b/tp2
or distserve/opt-13b/tp1, or five numbers in ns: a step, a prompt token, its context, a decode, its context.
"""

import argparse
import os
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from tqdm import tqdm

from penstock.cli import bench
from penstock.core.slo import Slo
from penstock.cost.fitting import of_steps
from penstock.cost.models import Model
from penstock.drivers.deployment import DelaySpec, Deployment, Laid, PoolSpec, lay_out
from penstock.drivers.log import Observed, observe
from penstock.drivers.meter import Meter, Use
from penstock.drivers.recorded import gather
from penstock.drivers.sim import Simulation
from penstock.drivers.timeline import Timeline
from penstock.metrics import plot, report, result
from penstock.metrics.record import COMPLETED, Record
from penstock.metrics.summary import Summary, summarize
from penstock.policies.bundles import ROWS
from penstock.workload.trace import Request

#: Above so many output tokens only the first and the last of each request are kept.
TOKENS_MAX = 50_000_000
#: KV of an instance, where nothing says how much it has.
KV_TOKENS = 65536
#: Flags whose numbers are above 0.
_POSITIVE = (
    "kv_pages", "num_prompts", "request_rate", "random_input_len", "random_output_len", "length_scale", "max_input_len",
    "max_output_len", "prefix_repetition_num_prefixes", "prefix_repetition_prefix_len", "prefix_repetition_suffix_len",
    "prefix_repetition_output_len", "time_scale", "burstiness",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    system = parser.add_argument_group("system")
    system.add_argument("--config", type=Path, metavar="YAML", help="a deployment (docs/simulation.md)")
    system.add_argument("--hardware", help="h200, h100, a100, a800, a10; with --model: step times and KV capacity")
    system.add_argument("--model", help="a name such as llama-3.1-8b, or a folder with a config.json")
    system.add_argument("--tp", type=int, help="GPUs that share a layer; default: 1")
    system.add_argument("--pp", type=int, help="pipeline stages; default: 1")
    system.add_argument("--cost", help="what steps cost, instead of hardware and model: see above")
    system.add_argument("--cost-from", type=Path, metavar="LOG", help="fit step times, and take the sizes, from here")
    system.add_argument(
        "--front-from", type=Path, metavar="JSON", help="a saved run, recorded in that log: what its client saw later"
    )
    system.add_argument("--policy", choices=sorted(ROWS), help="default: the file's or the log's, else fcfs")
    system.add_argument("--instances", type=int, help="of each pool; default: 1")
    system.add_argument("--kv-tokens", type=int, help="tokens of KV on an instance; default: what memory leaves")
    system.add_argument("--kv-pages", type=int, help="the same, in pages")
    system.add_argument("--page-tokens", type=int, help="tokens in a page of KV; default: 16")
    system.add_argument("--block-tokens", type=int, help="tokens in a shared prefix block; default: 64")
    system.add_argument("--max-num-seqs", type=int, help="requests that run at the same time; default: the policy's")
    system.add_argument("--max-num-batched-tokens", type=int, help="tokens in a step; default: the policy's")
    system.add_argument("--max-num-queued-reqs", type=int, help="requests that wait; more are rejected")
    system.add_argument("--predictor", help="what the policy reckons with, if not with what steps do cost")
    system.add_argument("--predictor-factor", type=float, help="... and by how much it is wrong")
    system.add_argument("--no-correction", action="store_true", help="what steps take does not correct it")
    parser.add_argument("--against", type=Path, metavar="JSON", help="a saved live run: same requests, side by side")
    parser.add_argument("--stepping", action="store_true", help="play every step by itself: slow, same result")
    bench.workload_arguments(parser.add_argument_group("workload"))
    bench.arrival_arguments(parser.add_argument_group("arrivals"))
    bench.report_arguments(parser.add_argument_group("report"))
    output = parser.add_argument_group("output")
    bench.result_arguments(output)
    output.add_argument("--chrome-trace", metavar="JSON", help="steps and requests over time, for ui.perfetto.dev")


def main(args: argparse.Namespace) -> int:
    """0 if any request was served."""
    _check(args)
    laid, promised, notes = deploy(args)
    live = result.load(args.against) if args.against else None
    requests = requests_of(live.records) if live else bench.workload(args)[0]
    slo = _promise(args, live, promised)
    every_token = sum(request.output_tokens for request in requests) <= TOKENS_MAX
    timeline = Timeline() if args.chrome_trace else None
    meter = Meter(timeline)
    config = msgspec.structs.replace(laid.sim, slo=slo, every_token=every_token, stepping=args.stepping)
    simulation = Simulation(config, laid.costs, meter)
    meter.watch(simulation.members)
    began = time.perf_counter()
    with tqdm(total=len(requests), unit="req", disable=args.disable_tqdm or None) as bar:
        records = simulation.run(requests, bar.update)
    took_s = time.perf_counter() - began
    set_idle(records, requests, laid)
    notes += _limits(laid, simulation, meter, requests, records)
    notes.append(
        f"Simulated {len(records)} requests in {took_s:.2f} s of wall time, {len(records) / took_s:.0f} a second."
    )
    if not every_token:
        notes.append("Times of first and last tokens only: ITL is E2E less TTFT, and all tokens come with the last.")
    if timeline is not None:
        timeline.write(args.chrome_trace, records)
        left_out = f"; its last {timeline.left_out} steps had no room" if timeline.left_out else ""
        notes.append(f"Open {args.chrome_trace} in ui.perfetto.dev{left_out}.")
    return _conclude(args, _gpus(laid, _uses(laid, meter, records)), records, live, notes, slo)


def _promise(args: argparse.Namespace, live: result.Result | None, promised: Slo) -> Slo:
    """What is promised to requests that bring no SLO: the flag's, else the live run's, else the file's."""
    if live and live.summary.goodput:
        promised = live.summary.goodput.slo
    return Slo.parse(" ".join(args.goodput)) or promised


def _check(args: argparse.Namespace) -> None:
    """Of flags that are not checked where they are used. Raises ValueError."""
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more")
    if args.max_concurrency is not None or args.arrival == "closed":
        raise ValueError("a closed loop (--arrival closed, --max-concurrency) is not simulated: give --request-rate")
    if args.kv_tokens is not None and args.kv_pages is not None:
        raise ValueError("--kv-tokens and --kv-pages say the same: give one")
    if args.chrome_trace and not Path(args.chrome_trace).absolute().parent.is_dir():
        raise ValueError(f"--chrome-trace {args.chrome_trace}: there is no such folder")
    if args.plot is not None:
        plot.check()


def deploy(args: argparse.Namespace) -> tuple[Laid, Slo, list[str]]:
    """The system that the flags describe, what it promises, and what is to be said about it."""
    seen = observe(args.cost_from) if args.cost_from else None
    base = _logged(seen) if seen else Deployment(pools=[PoolSpec()])
    if args.config:
        base = Deployment.read(args.config)
    late: list[str] = []
    if args.front_from:
        base, late = _with_front(base, args.cost_from, args.front_from)
    pool = {
        name: getattr(args, name)
        for name in (
            "hardware", "tp", "pp", "cost", "instances", "kv_tokens", "page_tokens", "block_tokens", "max_num_seqs",
            "max_num_batched_tokens", "max_num_queued_reqs", "predictor", "predictor_factor",
        )
    }  # fmt: skip
    pool["correct"] = False if args.no_correction else None
    deployment = base.changed(pool, model=args.model, policy=args.policy)
    cost, notes = _fitted(args, seen) if seen and not args.cost else (None, [])
    notes += late
    pools = [_with_room(spec, args.kv_pages, bool(deployment.model)) for spec in deployment.pools]
    if pools != deployment.pools and args.kv_pages is None:
        notes.append(f"Room for {KV_TOKENS:,} tokens of KV is an assumption: --kv-tokens says what there is.")
    deployment = msgspec.structs.replace(deployment, pools=pools)
    return lay_out(deployment, cost), Slo.parse(deployment.slo), notes


def _with_room(spec: PoolSpec, pages: int | None, known: bool) -> PoolSpec:
    """With so many pages, or with some where neither a number nor a model that is known says how many."""
    if pages is not None:
        return msgspec.structs.replace(spec, kv_tokens=pages * spec.page_tokens)
    return spec if known or spec.kv_tokens is not None else msgspec.structs.replace(spec, kv_tokens=KV_TOKENS)


def _logged(seen: Observed) -> Deployment:
    """An instance like that of a log, and its messages."""
    config, limits = seen.config, seen.config.limits
    pool = PoolSpec(
        kv_tokens=config.pages * config.page_tokens,
        page_tokens=config.page_tokens,
        block_tokens=config.block_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_queued_reqs=limits.max_num_queued,
        pipeline_depth=config.depth,
    )
    delay_ms = median(seen.delays) / 1e6 if seen.delays else 0.0
    return Deployment(
        policy=config.policy, pools=[pool], delays=DelaySpec(dispatch_ms=delay_ms, token_ms=delay_ms)
    )  # fmt: skip


def _with_front(base: Deployment, log: Path | None, run: Path) -> tuple[Deployment, list[str]]:
    """With a front that delays first tokens as that of a recorded server did, half on the way in and half on the way
    out, and what is to be said of it. `run`: the last that the log tells of. Raises ValueError where it is not."""
    if log is None:
        raise ValueError(f"--front-from {run}: say with --cost-from which log its requests are in")
    seen = sorted(result.load(run).records, key=lambda r: r.sent_ns)
    told = sorted(gather([log]).records, key=lambda r: r.sent_ns)[-len(seen) :]
    if Counter(r.prompt_tokens for r in seen) != Counter(r.prompt_tokens for r in told):
        others = f"the last {len(seen)} requests of {log} have prompts of other lengths"
        raise ValueError(f"--front-from {run}: {others}: give the run that the log ends with")
    pairs = zip(seen, told, strict=True)
    late = [s.ttft_ns - t.ttft_ns for s, t in pairs if s.ttft_ns is not None and t.ttft_ns is not None]
    if not late:
        raise ValueError(f"--front-from {run}: no request of it was answered: give a run with answers")
    late_ms = max(0.0, median(late)) / 1e6
    delays = msgspec.structs.replace(base.delays, front_ms=late_ms / 2, token_ms=late_ms / 2)
    said = f"Clients saw first tokens {late_ms:.2f} ms later than the core (median of {len(late)} in {run})."
    return msgspec.structs.replace(base, delays=delays), [said]


def _fitted(args: argparse.Namespace, seen: Observed) -> tuple[Model, list[str]]:
    if not seen.steps:
        raise ValueError(f"{args.cost_from}: no step in it to fit step times to")
    found = of_steps(seen.steps)
    return found.cost, [found.said(str(args.cost_from))]


def requests_of(records: list[Record]) -> list[Request]:
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


def set_idle(records: list[Record], requests: list[Request], laid: Laid) -> None:
    """What each request would take on an idle instance of the first kind, messages included."""
    cost, delays = laid.costs[0], laid.sim.delays
    for record, request in zip(records, requests, strict=True):
        ttft, record.idle_tpot_ns = cost.request_ns(request.prompt_tokens, request.output_tokens)
        front = delays.front + round(delays.front_per_token * request.prompt_tokens)
        record.idle_ttft_ns = ttft + front + delays.dispatch + delays.token


def _limits(
    laid: Laid, simulation: Simulation, meter: Meter, requests: list[Request], records: list[Record]
) -> list[str]:
    """What each pool was busy with, over the time of the whole run, what moved, and what prompts shared."""
    lines: list[str] = []
    uses = _uses(laid, meter, records)
    for pool, use in zip(laid.pools, uses, strict=True):
        lines += [
            f"{pool.instances} x {pool.title}, each with room for {pool.kv_tokens:,} tokens of KV:",
            f"  stepping {100 * use.stepping:.1f} % of the time; KV in use {100 * use.kv_mean:.1f} % on average, "
            f"{100 * use.kv_max:.1f} % at most;",
            f"  waiting on an instance {use.waiting_mean:.1f} requests on average, {use.waiting_max} at most; "
            f"{use.preemptions} preemptions.",
        ]
    lines += _fleet(laid, uses, records) + _moves(simulation, meter)
    exact = not any(use.preemptions for use in uses) and all(record.outcome == COMPLETED for record in records)
    return lines + _shared(laid, requests, f"{'' if exact else 'at least '}{100 * meter.found(records):.1f} %")


def _uses(laid: Laid, meter: Meter, records: list[Record]) -> list[Use]:
    begin, end = min(record.sent_ns for record in records), max(record.end_ns for record in records)
    return [meter.use(pool, begin, end) for pool in laid.pools]


def _fleet(laid: Laid, uses: list[Use], records: list[Record]) -> list[str]:
    """How many instances there were on average, and for how long GPUs, if that is not what the file says."""
    mean = sum(use.instances for use in uses)
    if abs(mean - sum(pool.instances for pool in laid.pools)) < 0.005:
        return []
    hours = (max(record.end_ns for record in records) - min(record.sent_ns for record in records)) / 3600e9
    gpus = _gpus(laid, uses)
    return [
        f"Instances, starting ones too: {mean:.2f} on average" + (f"; {gpus * hours:.2f} GPU-hours." if gpus else ".")
    ]


def _gpus(laid: Laid, uses: list[Use]) -> float:
    """GPUs on average; 0 where the hardware of some is not said."""
    if not all(pool.gpus for pool in laid.pools):
        return 0.0
    return sum(pool.gpus * use.instances for pool, use in zip(laid.pools, uses, strict=True))


def _moves(simulation: Simulation, meter: Meter) -> list[str]:
    moved = meter.all_moves()
    if not simulation.moves and not moved.aborts:
        return []
    aborts = ", ".join(f"{count} x {reason}" for reason, count in moved.aborts.items())
    return [
        f"Moves between instances: {simulation.moves:,}, with {moved.kv_bytes / 1e9:.2f} GB of KV; "
        f"came to nothing: {aborts or 'none'}."
    ]


def _shared(laid: Laid, requests: list[Request], found: str) -> list[str]:
    block_tokens = laid.sim.members[0].instance.block_tokens
    named = [request for request in requests if request.hash_ids]
    lost = sum(bool(request.block_tokens % block_tokens) for request in named)
    warning = (
        f"WARNING: {lost} requests name blocks whose length is no multiple of --block-tokens {block_tokens}: "
        "they share nothing."
    )
    return [warning] * bool(lost) + [f"Prompt tokens found in the prefix cache: {found}."] * bool(named)


def _conclude(
    args: argparse.Namespace,
    gpus: float,
    records: list[Record],
    live: result.Result | None,
    notes: list[str],
    slo: Slo,
) -> int:
    summary = summarize(records, slo, percentiles=args.metric_percentiles, **args.warmup)
    notes = [*notes, *_per_gpu(gpus, summary)]
    if live:
        lived = summarize(live.records, slo, percentiles=args.metric_percentiles, **args.warmup)
        print("\n".join([report.compare(lived, summary, metrics=args.percentile_metrics), *notes]))
    else:
        print(report.render(summary, title="Simulated", metrics=args.percentile_metrics, notes=notes))
    path = os.path.join(args.result_dir, args.result_filename or "simulated.json")
    if args.save_result:
        run: dict[str, Any] = {key: value for key, value in vars(args).items() if not callable(value)}
        run = {key: str(value) if isinstance(value, Path) else value for key, value in run.items()}
        said = run | {"simulated": True, "notes": notes}
        result.save(result.Result(run=said, summary=summary, records=records), path)
        print(f"Every request is in {path}")
    if args.plot is not None:
        bench.draw(records, slo, args.plot or os.path.splitext(path)[0] + ".png")
    return 0 if any(record.outcome == COMPLETED for record in records) else 1


def _per_gpu(gpus: float, summary: Summary) -> list[str]:
    if not gpus or summary.goodput is None:
        return []
    rate = summary.goodput.requests_per_s / gpus
    return [f"Goodput a GPU: {rate:.3f} req/s on each of {gpus:.4g} GPUs, SLO {summary.goodput.slo}."]
