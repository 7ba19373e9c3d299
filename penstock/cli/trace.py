"""`penstock trace`: say what a trace is like, convert it, make one.

penstock trace describe azure.csv --plot azure.png
penstock trace convert azure.csv fast.jsonl --duration 600 --rate 10 --format mooncake
penstock trace synthesize chat.jsonl --count 1000 --rate 5 --lengths azure-conv-2023 --sessions uniform:1-8
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.slo import Slo
from penstock.metrics.plot import check
from penstock.workload import lengths, plot, trace
from penstock.workload.compose import Plan, synthesize
from penstock.workload.describe import MINUTE_S, WINDOW_S, Description, Spread, describe
from penstock.workload.request import MOONCAKE_BLOCK, Request

ARRIVALS = ("poisson", "gamma", "constant", "diurnal", "distserve", "loongserve", "llumnix")
_WIDTH = 72
#: So many different SLOs, priorities or adapters are shown.
_VALUES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="trace_verb", required=True, metavar="describe|convert|synthesize")
    said = verbs.add_parser("describe", help="rates, burstiness, lengths, shared prefixes, sessions, promises")
    said.add_argument("file", help="JSONL (penstock's, Mooncake's, Bailian's) or CSV (Azure's, BurstGPT's, vidur's)")
    said.add_argument("--json", action="store_true", help="print JSON")
    said.add_argument("--plot", metavar="PNG", help="draw arrivals, gaps and lengths")
    _convert_arguments(verbs.add_parser("convert", help="read a trace, cut and scale it, and write it"))
    made = verbs.add_parser(
        "synthesize",
        help="make a trace from an arrival process and lengths",
        description=lengths.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _synthesize_arguments(made)


def main(args: argparse.Namespace) -> int:
    """0, or an error."""
    return {"describe": _describe, "convert": _convert, "synthesize": _synthesize}[args.trace_verb](args)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="a trace in any format that `describe` reads")
    parser.add_argument("output", metavar="OUT")
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="begin here, in s after the first arrival"
    )
    parser.add_argument("--duration", type=float, metavar="S", help="take so many s of the trace")
    parser.add_argument("--limit", type=int, metavar="N", help="take at most so many requests")
    times = parser.add_mutually_exclusive_group()
    times.add_argument("--rate", type=float, help="scale the times to this mean rate, requests/s")
    times.add_argument("--time-scale", type=float, default=1.0, help="times times this; 0.5 is twice the rate")
    parser.add_argument("--length-scale", type=float, default=1.0, help="all lengths times this")
    parser.add_argument("--max-input-len", type=int, metavar="N", help="longer prompts are cut, after scaling")
    parser.add_argument("--max-output-len", type=int, metavar="N", help="longer answers are cut, after scaling")
    _format_argument(parser)


def _format_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=list(trace.FORMATS), help="default: csv for a name in .csv, else penstock")


def _synthesize_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUT")
    _format_argument(parser)
    much = parser.add_mutually_exclusive_group(required=True)
    much.add_argument("--count", type=int, metavar="N", help="so many requests")
    much.add_argument("--duration", type=float, metavar="S", help="as many as come in so many s")
    parser.add_argument("--seed", type=_whole, default=0, help="a number, also as 0xCADE; the same seed, the same file")
    times = parser.add_argument_group("arrivals")
    times.add_argument("--arrival", choices=ARRIVALS, default="poisson")
    times.add_argument("--rate", type=float, help="requests/s on average; turns count as requests")
    times.add_argument(
        "--cv", type=float, default=1.0, help="coefficient of variation of the gaps, where gamma; 1: Poisson"
    )
    times.add_argument("--trough", type=float, metavar="RATE", help="diurnal: requests/s at the least, at the start")
    times.add_argument("--peak", type=float, metavar="RATE", help="diurnal: requests/s at the most")
    times.add_argument("--period", type=float, default=86_400.0, metavar="S", help="diurnal: s from peak to peak")
    sizes = parser.add_argument_group("lengths")
    sizes.add_argument("--lengths", required=True, metavar="SPEC", help="of prompts, or of both; see above")
    sizes.add_argument("--output-lengths", metavar="SPEC", help="of answers")
    alike = parser.add_argument_group("what prompts share")
    alike.add_argument(
        "--prefixes", type=int, default=0, metavar="N", help="so many shared prefixes, before each prompt"
    )
    alike.add_argument("--prefix-len", type=int, default=0, metavar="L", help="tokens of each")
    alike.add_argument("--prefix-zipf", type=float, default=1.0, help="the k-th is k^-this as popular as the first")
    alike.add_argument("--block-tokens", type=int, default=MOONCAKE_BLOCK, help="tokens of a named block")
    alike.add_argument("--sessions", metavar="TURNS", help="conversations of so many turns: 4, or a spec: uniform:1-8")
    alike.add_argument("--think", type=float, default=0.0, metavar="S", help="mean s from an answer to the next turn")
    users = parser.add_argument_group("clients")
    users.add_argument("--cancel-share", type=float, default=0.0, help="this share hangs up")
    users.add_argument("--cancel-after", type=float, default=5.0, metavar="S", help="mean s until they do")
    users.add_argument("--priority-share", type=float, default=0.0, help="this share has priority 0, the others 1")
    users.add_argument("--slo", type=Slo.parse, metavar="SLO", help="of every request: ttft=500ms,tpot=50ms")


def _describe(args: argparse.Namespace) -> int:
    if args.plot:
        check()
    requests = trace.load(args.file)
    said = describe(requests)
    print(json.dumps(msgspec.to_builtins(said), indent=2) if args.json else render(said, Path(args.file).name))
    if args.plot:
        plot.plot(requests, args.plot, title=f"{Path(args.file).name}: {said.requests:,} requests")
        if not args.json:
            print(f"Drawn in {args.plot}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    requests = trace.load(args.input, start_s=args.start, duration_s=args.duration, limit=args.limit)
    if not requests:
        raise ValueError(f"{args.input}: no request is left: see --start, --duration and --limit")
    for name in ("rate", "time_scale", "length_scale", "max_input_len", "max_output_len"):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value:g} must be positive")
    requests = trace.to_rate(requests, args.rate) if args.rate else trace.scale_times(requests, args.time_scale)
    requests = trace.scale_lengths(
        requests, args.length_scale, input_max=args.max_input_len, output_max=args.max_output_len
    )
    return _save(requests, args)


def _synthesize(args: argparse.Namespace) -> int:
    plan = Plan(
        lengths=args.lengths,
        output_lengths=args.output_lengths,
        arrival=args.arrival,
        count=args.count,
        duration_s=args.duration,
        rate=args.rate,
        cv=args.cv,
        trough=args.trough,
        peak=args.peak,
        period_s=args.period,
        prefixes=args.prefixes,
        prefix_len=args.prefix_len,
        prefix_zipf=args.prefix_zipf,
        block_tokens=args.block_tokens,
        turns=args.sessions,
        think_s=args.think,
        cancel_share=args.cancel_share,
        cancel_s=args.cancel_after,
        priority_share=args.priority_share,
        slo=args.slo,
        seed=args.seed,
    )
    return _save(synthesize(plan), args)


def _save(requests: list[Request], args: argparse.Namespace) -> int:
    began = time.perf_counter()
    format = args.format or ("csv" if args.output.endswith(".csv") else "penstock")
    lost = trace.save(requests, args.output, format)
    took_s = time.perf_counter() - began
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    rate = f"{span_s:,.1f} s, {trace.mean_rate(requests):.3f} req/s" if span_s else "all at 0 s"
    print(f"{args.output}: {len(requests):,} requests, {rate}; format {format}, written in {took_s:.1f} s")
    for name, count in lost.items():
        print(f"  left out, since {format} has no place for it: {name} of {count:,} requests")
    return 0


def render(said: Description, title: str) -> str:
    """The description as a table."""
    lines = [f" {title} ".center(_WIDTH, "=")]
    lines += [_row(label, value) for label, value in _counts(said)]
    lines += [
        _heading("Lengths"),
        f"{'tokens':<17}" + "".join(f"{n:>11}" for n in ("mean", "P50", "P90", "P99", "max")),
    ]
    lines += [_spread(name, spread) for name, spread in _lengths(said)]
    lines += [_heading("Shared prefixes"), *(_row(label, value) for label, value in _sharing(said))]
    lines += [_heading("Sessions"), *(_row(label, value) for label, value in _sessions(said))]
    lines += [_heading("Promises and clients"), *(_row(label, value) for label, value in _promises(said))]
    return "\n".join([*lines, "=" * _WIDTH])


def _counts(said: Description) -> list[tuple[str, str]]:
    counts = [
        ("Requests", f"{said.requests:,}"),
        ("Prompt tokens", f"{said.prompt_tokens:,}"),
        ("Output tokens", f"{said.output_tokens:,}"),
    ]
    if not said.duration_s:
        return [*counts, ("Arrivals", "all at 0 s")]
    return [
        *counts,
        ("Duration, first to last arrival (s)", f"{said.duration_s:,.2f}"),
        ("Mean rate (req/s)", f"{said.mean_rate:.3f}"),
        (f"Rate in the busiest minute, from {said.peak_at_s / MINUTE_S:,.0f} min on (req/s)", f"{said.peak_rate:.3f}"),
        ("CV of gaps between arrivals (Poisson: 1)", _number(said.gap_cv)),
        (f"CV of gaps within {WINDOW_S / MINUTE_S:g}-minute windows, mean", _number(said.gap_cv_in_windows)),
    ]


def _lengths(said: Description) -> list[tuple[str, Spread]]:
    return [("prompt", said.prompt), ("output", said.output), ("total", said.total)]


def _sharing(said: Description) -> list[tuple[str, str]]:
    shared = said.sharing
    if not shared.requests:
        return [("Requests that name the blocks of their prompt", "none")]
    return [
        ("Requests that name the blocks of their prompt", f"{shared.requests:,}"),
        ("Prompt tokens seen before: the best hit rate (%)", f"{100 * shared.seen_share:.2f}"),
        ("Different blocks", f"{shared.blocks:,}"),
        ("Tokens in them: the cache that is never too small", f"{shared.block_tokens:,}"),
    ]


def _sessions(said: Description) -> list[tuple[str, str]]:
    if said.turns is None:
        return [("Requests that belong to a session", "none")]
    rows = [
        ("Sessions", f"{said.sessions:,}"),
        ("Turns a session: mean, P99, max", f"{said.turns.mean:.2f}, {said.turns.p99:.0f}, {said.turns.max:.0f}"),
    ]
    if said.think_s is not None:
        rows.append(("Turns sent after an answer, not at a time of their own", f"{said.thinking:,}"))
        rows.append(("Mean time from that answer (s)", f"{said.think_s:.2f}"))
    return rows


def _promises(said: Description) -> list[tuple[str, str]]:
    rows = []
    for name, counts in (("SLO", said.slos), ("Priority", said.priorities), ("Adapter", said.adapters)):
        rows += [(f"{name} {value}", f"{count:,}") for value, count in list(counts.items())[:_VALUES]]
        if len(counts) > _VALUES:
            rows.append((f"{name}: {len(counts) - _VALUES} others", f"{sum(list(counts.values())[_VALUES:]):,}"))
    if said.cancel_s is not None:
        rows.append(("Requests that the client gives up", f"{said.cancelled:,}"))
        rows.append(("Mean time until it does (s)", f"{said.cancel_s:.2f}"))
    if said.limited:
        rows.append(("Requests with a limit other than their length", f"{said.limited:,}"))
    if said.texts:
        rows.append(("Requests with the text of their prompt", f"{said.texts:,}"))
    return rows or [("SLOs, priorities, adapters, cancellations", "none")]


def _heading(text: str) -> str:
    return f" {text} ".center(_WIDTH, "-")


def _row(label: str, value: Any) -> str:
    return f"{label:<{_WIDTH - 16}}{value:>16}"


def _spread(name: str, spread: Spread) -> str:
    values = (f"{spread.mean:,.1f}", *(f"{v:,.0f}" for v in (spread.p50, spread.p90, spread.p99, spread.max)))
    return f"{name:<17}" + "".join(f"{value:>11}" for value in values)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _whole(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be from 0 to 2^32 - 1")
    return number
