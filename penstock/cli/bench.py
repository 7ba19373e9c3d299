"""`penstock bench`: load a server and say how well it did, at one setting or many; judge saved runs again.

Flags are those of `vllm bench serve` where they mean the same. Joins the load (`penstock.workload`) to the
numbers (`penstock.metrics`) and has no other part in either.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from penstock.cli import judge, latency, sweep
from penstock.core.slo import Slo
from penstock.metrics import plot, report, result
from penstock.metrics.idle import Idle
from penstock.metrics.record import COMPLETED, Record
from penstock.metrics.summary import Dist, summarize
from penstock.workload import arrivals, client, prompts, synth, trace, turns
from penstock.workload.client import Call, Client, Reply
from penstock.workload.target import NoServer, Target
from penstock.workload.trace import Request

ENDPOINTS = {"openai": "/v1/completions", "vllm": "/v1/completions", "openai-chat": "/v1/chat/completions"}
#: Requests where neither their number nor a file says how many.
COUNT = 1000
#: Up to so many prompt tokens in all, requests are written before the run, else each just before it is sent.
TOKENS_AHEAD_MAX = 4_000_000
#: Prompts that are sent outside the run come from another seed, so that they leave nothing useful in a cache.
OTHER_SEED = 1_000_003
CALIBRATION_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="bench_verb", required=True, metavar="serve|sweep|latency|report")
    serve_arguments(
        verbs.add_parser("serve", help="load a running server and report latencies, throughput and goodput")
    )
    sweep.add_arguments(verbs.add_parser("sweep", help="a run for each rate of a grid, live or simulated; resumable"))
    latency.add_arguments(verbs.add_parser("latency", help="time a model in this process, without a server"))
    again = verbs.add_parser("report", help="print the report of saved runs, judged by another SLO if one is given")
    again.add_argument(
        "results", nargs="+", metavar="FILE|DIR|LABEL=DIR", help="what --save-result or `bench sweep` wrote"
    )
    report_arguments(again)
    # Not given, it is what a sweep was run with.
    again.set_defaults(warmup=None)
    judge.judging_arguments(again.add_argument_group("many runs"))


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    _server_arguments(parser.add_argument_group("server"))
    workload_arguments(parser.add_argument_group("workload"))
    arrival_arguments(parser.add_argument_group("arrivals"))
    _request_arguments(parser.add_argument_group("requests"))
    report_arguments(parser.add_argument_group("report"))
    result_arguments(parser.add_argument_group("output"))


def main(args: argparse.Namespace) -> int:
    """0 if any request succeeded; 1 if none did, or the run could not begin; 130 if stopped before it did."""
    try:
        return {"serve": serve, "sweep": sweep.main, "latency": latency.main, "report": _report}[args.bench_verb](args)
    except KeyboardInterrupt:
        return 130
    except (NoServer, ValueError, OSError) as error:
        print(f"penstock bench: {error}", file=sys.stderr)
        return 1


def serve(args: argparse.Namespace) -> int:
    """As `main`, but raises where the run could not begin."""
    status: int = client.run(_serve(args))
    return status


def _server_arguments(group: Any) -> None:
    group.add_argument("--base-url", help="instead of --host and --port; a key, if needed, is in OPENAI_API_KEY")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--backend", choices=list(ENDPOINTS), default="openai", help="text or chat completions")
    group.add_argument("--endpoint", help="path, where it is not the backend's usual one")
    group.add_argument("--model", default="", help="default: the first that /v1/models names")
    group.add_argument(
        "--ready-check-timeout-sec",
        type=float,
        metavar="S",
        help="wait so long for a server that is not ready; default: 600, but 0 for one that is not there at all",
    )


def workload_arguments(group: Any) -> None:
    group.add_argument("--dataset-name", choices=["random", "trace", "prefix_repetition"], default="random")
    group.add_argument(
        "--dataset-path",
        help="trace: any file that `penstock trace describe` reads (docs/traces.md); without a file, requests are "
        "synthesized to match the Azure 2023 conversation trace",
    )
    group.add_argument("--num-prompts", type=int, help=f"default: {COUNT}, or all of the file")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--random-input-len", type=int, default=1024)
    group.add_argument("--random-output-len", type=int, default=128)
    group.add_argument("--random-range-ratio", type=float, default=0.0, help="lengths vary by so much of their means")
    group.add_argument("--prefix-repetition-num-prefixes", type=int, default=10)
    group.add_argument("--prefix-repetition-prefix-len", type=int, default=256)
    group.add_argument("--prefix-repetition-suffix-len", type=int, default=256)
    group.add_argument("--prefix-repetition-output-len", type=int, default=128)
    group.add_argument("--length-scale", type=float, default=1.0, help="all lengths times this")
    group.add_argument("--max-input-len", type=int, help="longer prompts are cut, after scaling")
    group.add_argument("--max-output-len", type=int, help="longer answers are cut, after scaling")


def arrival_arguments(group: Any) -> None:
    group.add_argument(
        "--arrival",
        choices=arrivals.KINDS,
        help="default: the trace's own times for a trace without --request-rate, else poisson, or gamma where "
        "--burstiness is given; closed: all at once, held back by --max-concurrency",
    )
    group.add_argument("--request-rate", type=float, help="requests/s on average; default: all at once")
    group.add_argument("--burstiness", type=float, default=1.0, help="1 is Poisson, less is burstier; CV ** -2")
    group.add_argument("--max-concurrency", type=int, help="the most requests that are open at one time")
    group.add_argument("--time-scale", type=float, default=1.0, help="arrival times times this; 0.5 is twice the rate")
    group.add_argument("--trace-start", type=float, default=0.0, metavar="S", help="begin the trace here")
    group.add_argument("--duration", type=float, metavar="S", help="no request is sent later than this")


def _request_arguments(group: Any) -> None:
    group.add_argument("--ignore-eos", action="store_true", help="ask for answers of exactly the length given")
    group.add_argument("--temperature", type=float, help="default: the server's")
    group.add_argument("--extra-body", type=json.loads, default={}, metavar="JSON", help="more fields for each request")
    group.add_argument("--cancel-share", type=float, default=0.0, help="hang up on this share of requests at random")
    group.add_argument("--prompt-seed", type=int, help="of the words alone; default: --seed")
    group.add_argument(
        "--num-warmups", type=int, default=0, help="requests sent one by one before the run, not counted"
    )


def report_arguments(group: Any) -> None:
    group.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:TARGET", help="SLO: ttft:200 (ms), tpot:50 e2e:2s, ttft:3x"
    )
    group.add_argument(
        "--warmup", type=_warmup, default="0", metavar="N|Ss", help="leave out the first N requests, or S seconds: 10s"
    )
    group.add_argument("--percentile-metrics", type=_metrics, default=",".join(report.METRICS))
    group.add_argument("--metric-percentiles", type=_percentiles, default="50,90,99")


def result_arguments(group: Any) -> None:
    group.add_argument("--save-result", action="store_true", help="write JSON with every request")
    group.add_argument("--result-dir", default=".")
    group.add_argument("--result-filename", help="default: made of model and time")
    group.add_argument("--plot", nargs="?", const="", metavar="PNG", help="draw latencies over time and their CDFs")
    group.add_argument("--verbose", action="store_true", help="print prompts and answers")
    group.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


@dataclass
class _Run:
    """What the steps of one benchmark share."""

    args: argparse.Namespace
    target: Target
    requests: list[Request]
    notes: list[str]
    interrupted: bool = False

    @property
    def prompt_seed(self) -> int:
        return int(self.args.seed if self.args.prompt_seed is None else self.args.prompt_seed)

    @property
    def extra(self) -> dict[str, Any]:
        args = self.args
        asked: dict[str, Any] = {"ignore_eos": True} if args.ignore_eos else {}
        if args.temperature is not None:
            asked["temperature"] = args.temperature
        return {**asked, **args.extra_body}

    def calls(self, requests: list[Request], prompt_seed: int) -> Iterator[Call]:
        """The requests as the client sends them."""
        drawer = prompts.Prompts(self.target.symbols, prompt_seed)
        rng = np.random.default_rng([self.args.seed, 7])
        share = self.args.cancel_share
        for index, before in turns.in_order(requests):
            request = requests[index]
            prompt = self.target.prompt(request, drawer.of(self.target.sized(request), index))
            yield Call(
                index,
                round(request.arrival_s * 1e9),
                self.target.body(request, prompt, self.extra),
                self.target.request_headers(request),
                cancel_after=int(rng.integers(request.output_tokens)) if rng.random() < share else None,
                cancel_ns=None if request.cancel_s is None else round(request.cancel_s * 1e9),
                after=before,
                delay_ns=round((request.think_s or 0.0) * 1e9),
            )

    async def alone(self, requests: list[Request]) -> list[Record]:
        """Send requests one after another, outside the run."""
        at_once = [msgspec.structs.replace(r, arrival_s=0.0, think_s=None, cancel_s=None) for r in requests]
        sender = Client(self.target.url, self.target.headers, max_concurrency=1)
        replies = await sender.run(self.calls(at_once, self.prompt_seed + OTHER_SEED))
        return [record_of(reply, at_once[reply.index]) for reply in replies]

    async def calibrate(self) -> Idle:
        """Idle times from a few lone requests of the workload's range of lengths."""
        by_length = sorted(self.requests, key=lambda r: r.prompt_tokens)
        picked = [by_length[round(q * (len(by_length) - 1))] for q in (0.0, 0.25, 0.5, 0.75, 0.95)]
        tokens = min(CALIBRATION_TOKENS, max(r.output_tokens for r in self.requests))
        lone = [msgspec.structs.replace(r, output_tokens=tokens, limit_tokens=None, hash_ids=()) for r in picked]
        # The first of all may find a cold server, and is left out.
        idle = Idle.fit((await self.alone(lone[:1] + lone + lone))[1:])
        self.notes.append(f"Idle times, from {2 * len(lone)} lone requests before the run: {idle}.")
        return idle


async def _serve(args: argparse.Namespace) -> int:
    if args.plot is not None:
        plot.check()
    slo = Slo.parse(" ".join(args.goodput))
    requests, said = workload(args)
    if args.warmup.get("warmup_requests", 0) >= len(requests):
        raise ValueError(f"--warmup leaves out all {len(requests)} requests; see --num-prompts")
    key = os.environ.get("OPENAI_API_KEY")
    base_url = args.base_url or f"http://{args.host}:{args.port}"
    target = Target(
        base_url,
        args.endpoint or ENDPOINTS[args.backend],
        args.model,
        {"Authorization": f"Bearer {key}"} if key else {},
    )
    await target.wait(args.ready_check_timeout_sec, partial(print, file=sys.stderr))
    await target.find()
    run = _Run(args, target, requests, [said, _prompts_said(target, requests)])
    await run.alone(requests[: args.num_warmups])
    idle = await run.calibrate() if slo.relative else None
    sender, replies = await _send(run)
    records = [record_of(reply, requests[reply.index], idle) for reply in replies]
    return _conclude(run, sender, records, slo)


async def _send(run: _Run) -> tuple[Client, list[Reply]]:
    args, target = run.args, run.target
    calls: Any = run.calls(run.requests, run.prompt_seed)
    if sum(r.prompt_tokens for r in run.requests) <= TOKENS_AHEAD_MAX:
        calls = list(calls)
    asked = await _prompt_texts(run) if args.verbose else {}
    with tqdm(total=len(run.requests), unit="req", disable=args.disable_tqdm or None, smoothing=0.05) as bar:

        def on_done(reply: Reply) -> None:
            bar.update()
            if args.verbose:
                tqdm.write(f"[{reply.index}] {asked[reply.index]!r}\n  -> {''.join(reply.pieces) or reply.error!r}")

        sender = Client(
            target.url,
            target.headers,
            max_concurrency=args.max_concurrency,
            keep_text=args.verbose,
            on_done=on_done,
        )

        def on_interrupt() -> None:
            run.interrupted = True
            sender.stop()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, on_interrupt)
        return sender, await sender.run(calls, duration_s=args.duration)


async def _prompt_texts(run: _Run) -> dict[int, str]:
    drawer = prompts.Prompts(run.target.symbols, run.prompt_seed)
    said = {}
    for index, request in enumerate(run.requests):
        prompt = run.target.prompt(request, drawer.of(run.target.sized(request), index))
        said[index] = await run.target.words_of(prompt)
    return said


def _conclude(run: _Run, sender: Client, records: list[Record], slo: Slo) -> int:
    """Print, save and draw."""
    args = run.args
    late = {
        "send": Dist.of(r.sent_ns - r.scheduled_ns for r in records),
        "loop": Dist.of(sender.loop_lag_ns),
    }
    summary = summarize(records, slo, percentiles=args.metric_percentiles, **args.warmup)
    notes = [*filter(None, run.notes), *_lateness_said(late)]
    title = f"{run.target.model} at {run.target.base_url}"
    print(report.render(summary, title=title, metrics=args.percentile_metrics, notes=notes))
    name = args.result_filename or f"penstock-{_file_name(run.target.model)}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = os.path.join(args.result_dir, name)
    if args.save_result:
        said = vars(args) | {"model": run.target.model, "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "notes": notes}
        said |= {"interrupted": run.interrupted}
        plain = {key: value for key, value in said.items() if not callable(value)}
        result.save(result.Result(run=plain, summary=summary, client=late, records=records), path)
        print(f"Every request is in {path}")
    if args.plot is not None:
        draw(records, slo, args.plot or os.path.splitext(path)[0] + ".png")
    return 0 if any(r.outcome == COMPLETED for r in records) else 1


def _report(args: argparse.Namespace) -> int:
    """One file as `serve` reports it; many, or a file that is to be judged as a curve, as `sweep` does."""
    slo = Slo.parse(" ".join(args.goodput))
    if len(args.results) == 1 and os.path.isfile(args.results[0]) and not (args.slo_scales or args.csv):
        return _report_one(args, slo)
    terms = judge.Terms([slo] if slo else [], args.slo_scales, args.target, args.warmup)
    return judge.conclude(judge.sources(args.results), terms, args)


def _report_one(args: argparse.Namespace, slo: Slo) -> int:
    saved = result.load(args.results[0])
    slo = slo or (saved.summary.goodput.slo if saved.summary.goodput else Slo())
    summary = summarize(saved.records, slo, percentiles=args.metric_percentiles, **(args.warmup or {}))
    title = str(saved.run.get("model", "Saved run"))
    print(report.render(summary, title=title, metrics=args.percentile_metrics, notes=_lateness_said(saved.client)))
    if args.plot:
        draw(saved.records, slo, args.plot)
    return 0 if any(r.outcome == COMPLETED for r in saved.records) else 1


def draw(records: list[Record], slo: Slo, path: str) -> None:
    plot.plot(records, slo, path)
    print(f"Latencies are drawn in {path}")


def workload(args: argparse.Namespace) -> tuple[list[Request], str]:
    """The workload with its arrival times, and what is to be said about it."""
    kind = _arrival_kind(args)
    requests, said = _dataset(args, kind)
    requests = trace.scale_lengths(
        requests, args.length_scale, input_max=args.max_input_len, output_max=args.max_output_len
    )
    rate = args.request_rate
    if kind == "trace":
        requests = trace.to_rate(requests, rate) if rate else requests
    else:
        cv = args.burstiness**-0.5 if args.burstiness > 0 else 0.0
        times = arrivals.arrivals(kind, len(requests), rate or float("inf"), cv=cv, seed=args.seed)
        requests = prompts.at_times(requests, times)
    requests = trace.cut(trace.scale_times(requests, args.time_scale), duration_s=args.duration)
    if not requests:
        raise ValueError("the workload has no request: see --trace-start, --duration and --num-prompts")
    return requests, said


def _arrival_kind(args: argparse.Namespace) -> str:
    if args.arrival is not None:
        return str(args.arrival)
    if args.dataset_name == "trace" and args.request_rate is None:
        return "trace"
    return "poisson" if args.burstiness == 1.0 else "gamma"


def _dataset(args: argparse.Namespace, kind: str) -> tuple[list[Request], str]:
    """Requests at the times of their trace, or all at 0 s."""
    if args.dataset_name == "trace" and args.dataset_path:
        requests = trace.load(args.dataset_path, start_s=args.trace_start, limit=args.num_prompts)
        return requests, f"Requests from {args.dataset_path}, from {args.trace_start:g} s on."
    count = args.num_prompts or _enough(args, kind)
    if args.dataset_name == "trace":
        drawn = synth.draw(count=count, seed=args.seed)
        return drawn, "Requests synthesized to match the Azure 2023 conversation trace."
    if args.dataset_name == "random":
        sizes = (args.random_input_len, args.random_output_len)
        return prompts.random_requests(count, *sizes, range_ratio=args.random_range_ratio, seed=args.seed), ""
    return prompts.prefix_requests(
        count,
        prefixes=args.prefix_repetition_num_prefixes,
        prefix_len=args.prefix_repetition_prefix_len,
        suffix_len=args.prefix_repetition_suffix_len,
        output_len=args.prefix_repetition_output_len,
        seed=args.seed,
    ), ""


def _enough(args: argparse.Namespace, kind: str) -> int:
    """How many requests fill the duration; `cut` takes away what is too much."""
    if args.duration is None:
        return COUNT
    own = float(np.mean(synth.AZURE_CONV_2023.rates)) if kind == "trace" else 0.0
    rate = (args.request_rate or own) / (args.time_scale if kind == "trace" else 1.0)
    return int(1.5 * rate * args.duration) + 100 if rate else 100 * COUNT


def record_of(reply: Reply, request: Request, idle: Idle | None = None) -> Record:
    record = Record(
        id=reply.index,
        scheduled_ns=reply.due_ns,
        sent_ns=reply.sent_ns,
        end_ns=reply.end_ns,
        prompt_tokens=request.prompt_tokens if reply.prompt_tokens is None else reply.prompt_tokens,
        times_ns=reply.times_ns,
        counts=reply.counts,
        outcome=reply.outcome,
        error=reply.error,
        status=reply.status,
        slo=request.slo,
    )
    if idle is not None:
        idle.set_on(record)
    return record


def _prompts_said(target: Target, requests: list[Request]) -> str:
    if all(r.prompt is not None for r in requests):
        return "Prompts are the trace's own text."
    if target.ids:
        return f"Prompts are token ids, drawn from {len(target.ids)} different ones."
    return f"Prompts are common words ({target.tokens_per_word:.2f} tokens each); lengths as the server counts them."


def _lateness_said(late: dict[str, Dist | None]) -> list[str]:
    said = []
    for name, words in (("send", "Client sent requests late by"), ("loop", "Client's event loop was late by")):
        if dist := late.get(name):
            at = dist.percentiles_ms
            said.append(f"{words} {at[50.0]:.2f} ms (median), {at[99.0]:.2f} ms (P99), {dist.max_ms:.2f} ms (max).")
    if any(dist and dist.percentiles_ms[99.0] > judge.LATE_MS for dist in late.values()):
        said.append(f"WARNING: the client was more than {judge.LATE_MS:g} ms late; latencies may be its own.")
    return said


def _warmup(text: str) -> dict[str, Any]:
    try:
        return {"warmup_s": float(text[:-1])} if text.endswith("s") else {"warmup_requests": int(text)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number of requests, or of seconds as in 10s") from None


def _percentiles(text: str) -> list[float]:
    values = [float(p) for p in text.split(",")]
    if not all(0 <= p <= 100 for p in values):
        raise argparse.ArgumentTypeError(f"{text!r}: percentiles are from 0 to 100")
    return values


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in report.METRICS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} must be of {', '.join(report.METRICS)}")
    return names


def _file_name(model: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in model.strip("/"))
