"""Time a model without a server: batches of equal requests, through the scheduler and the engine in this process.

penstock bench latency ./folder --batch 1 8 --input-len 128 --output-len 64 --repeat 5
penstock bench latency --cost h200/llama-3.1-8b --batch 1 8 64       the same in simulated time

TTFT here is from handing the whole batch over to a request's first token, TPOT from there to its last one, for each
token after the first; both are means over a batch's requests. Prompts are random and never shared.
"""

import argparse
import statistics
import sys
import time

import msgspec
import numpy as np
from tqdm import tqdm

from penstock.cli.engine_flags import engine_arguments, engine_options
from penstock.core.config import InstanceConfig, Limits
from penstock.cost import named
from penstock.cost.models import Model
from penstock.drivers.local import Local
from penstock.drivers.scenario import alike
from penstock.drivers.sim import Simulation
from penstock.drivers.worker import make_engine
from penstock.engine.base import Engine, EngineInfo
from penstock.engine.params import Sampling
from penstock.workload.trace import Request


class Spread(msgspec.Struct, frozen=True):
    """Of the repeats."""

    mean: float
    deviation: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """What batches of one size took."""

    batch: int
    input_len: int
    output_len: int
    repeats: int
    ttft_ms: Spread
    #: None of a single output token.
    tpot_ms: Spread | None
    #: Output tokens of the whole batch, over the time from handing it over to its end.
    output_tokens_per_s: Spread


class _Run(msgspec.Struct, frozen=True):
    """One batch, in seconds."""

    ttft_s: float
    tpot_s: float
    all_s: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="local folder or hub id; nothing: the demo model")
    group = parser.add_argument_group("measuring")
    group.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="requests at once (default: 1 8)")
    group.add_argument("--input-len", type=int, default=128, help="tokens of a prompt (default: %(default)s)")
    group.add_argument("--output-len", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    group.add_argument(
        "--repeat", type=int, default=5, help="runs of each batch, after one more (default: %(default)s)"
    )
    group.add_argument("--max-num-batched-tokens", type=int, default=Limits().max_num_batched_tokens,
                       help="tokens in one step (default: %(default)s)")  # fmt: skip
    group.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    group.add_argument("--cost", help="simulate: steps take what this says (see `penstock simulate`)")
    group.add_argument("--json", action="store_true", help="print JSON instead of a table")
    engine_arguments(parser.add_argument_group("engine"))


def main(args: argparse.Namespace) -> int:
    """0 once everything is measured."""
    for name, value in [
        ("batch", min(args.batch)),
        *((n, getattr(args, n)) for n in ("input_len", "output_len", "repeat")),
    ]:
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if args.cost:
        cost, title = named.resolve(args.cost).cost, f"simulated, steps cost what {args.cost} says"
        found = [
            _latency(batch, args.input_len, args.output_len, [_simulate(cost, batch, args)]) for batch in args.batch
        ]
    else:
        sampling = Sampling(max_tokens=args.output_len, temperature=args.temperature, ignore_eos=True)
        engine, _ = make_engine(engine_options(args, args.max_num_batched_tokens), _say)
        _check_room(engine.info, args)
        found = _measure(engine, args, sampling)
        info, model = engine.info, args.model or ("null" if args.engine == "null" else "penstock-demo")
        title = f"{model}, {info.dtype} on {info.device}, {info.threads} threads; no server"
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        print(_table(found, title))
    return 0


def _simulate(cost: Model, batch: int, args: argparse.Namespace) -> _Run:
    """One batch on an instance that has room for it. In simulated time every run is the same."""
    limits = Limits(max_num_seqs=batch, max_num_batched_tokens=args.max_num_batched_tokens, max_num_queued=batch)
    length = args.input_len + args.output_len
    instance = InstanceConfig(pages=batch * -(-length // InstanceConfig(pages=1).page_tokens), limits=limits)
    request = Request(arrival_s=0.0, prompt_tokens=args.input_len, output_tokens=args.output_len)
    records = Simulation(alike(instance), cost).run([request] * batch)
    ttft_s = statistics.fmean((record.ttft_ns or 0) / 1e9 for record in records)
    tpot_s = statistics.fmean((record.tpot_ns or 0) / 1e9 for record in records)
    return _Run(ttft_s, tpot_s, max(record.end_ns for record in records) / 1e9)


def _check_room(info: EngineInfo, args: argparse.Namespace) -> None:
    length = args.input_len + args.output_len
    if length > info.max_len:
        raise ValueError(f"{length} tokens a request are more than the {info.max_len} that this engine takes")
    pages = max(args.batch) * -(-length // info.page_tokens)
    if pages > info.pages:
        raise ValueError(
            f"--batch {max(args.batch)} needs {pages} KV pages and there are {info.pages}: requests would wait for "
            "each other; give more --kv-pages, or smaller batches"
        )


def _measure(engine: Engine, args: argparse.Namespace, sampling: Sampling) -> list[Latency]:
    """All batches once, then all again: a machine that is slow for a while is slow for each of them."""
    limits = Limits(max_num_seqs=max(args.batch), max_num_batched_tokens=args.max_num_batched_tokens)
    local, draw = Local(engine, limits=limits), np.random.default_rng(0)
    runs: dict[int, list[_Run]] = {batch: [] for batch in args.batch}
    with tqdm(total=(args.repeat + 1) * len(runs), unit="batch", leave=False) as bar:
        for turn in range(args.repeat + 1):
            for batch, taken in runs.items():
                prompts = draw.integers(0, engine.info.vocab, (batch, args.input_len)).tolist()
                run = _run(local, prompts, sampling)
                if turn:  # the first one warms up
                    taken.append(run)
                bar.update()
    return [_latency(batch, args.input_len, args.output_len, taken) for batch, taken in runs.items()]


def _run(local: Local, prompts: list[list[int]], sampling: Sampling) -> _Run:
    began = time.perf_counter()
    jobs = [local.submit(prompt, sampling) for prompt in prompts]
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for output in local.run():
        if output.finish is not None and output.finish.startswith("error"):
            raise ValueError(f"a request failed: {output.finish}")
        last[output.job] = time.perf_counter()
        first.setdefault(output.job, last[output.job])
    ttft_s = statistics.fmean(first[job] - began for job in jobs)
    tpot_s = statistics.fmean((last[job] - first[job]) / max(1, sampling.max_tokens - 1) for job in jobs)
    return _Run(ttft_s, tpot_s, max(last.values()) - began)


def _latency(batch: int, input_len: int, output_len: int, runs: list[_Run]) -> Latency:
    return Latency(
        batch=batch,
        input_len=input_len,
        output_len=output_len,
        repeats=len(runs),
        ttft_ms=_spread([1e3 * run.ttft_s for run in runs]),
        tpot_ms=_spread([1e3 * run.tpot_s for run in runs]) if output_len > 1 else None,
        output_tokens_per_s=_spread([batch * output_len / run.all_s for run in runs]),
    )


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _table(found: list[Latency], title: str) -> str:
    some = found[0]
    lines = [
        f"{title}; {some.input_len} tokens in, {some.output_len} out, runs of each: {some.repeats}",
        f"{'batch':>6} {'TTFT ms':>20} {'TPOT ms':>20} {'output tokens/s':>20}",
    ]
    for row in found:
        cells = " ".join(f"{_said(spread):>20}" for spread in (row.ttft_ms, row.tpot_ms, row.output_tokens_per_s))
        lines.append(f"{row.batch:6} {cells}")
    lines.append("mean +- standard deviation over the runs")
    return "\n".join(lines)


def _said(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.mean:.2f} +- {spread.deviation:.2f}"


def _say(text: str) -> None:
    print(f"[penstock] {text}", file=sys.stderr, flush=True)
