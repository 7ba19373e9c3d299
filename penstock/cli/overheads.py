"""What serving costs beside the model's own steps: deciding, telling, sampling, and turning text to tokens and back.

Each is a cell: a name, a parameter, and something to run that says what one took. Cells take turns, so that a machine
that is slow for a while is slow for all.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import zmq

from penstock.api.tokenizer import load_tokenizer
from penstock.core.config import InstanceConfig, Limits
from penstock.core.events import StepDone, Submitted
from penstock.core.spec import JobSpec, Unit
from penstock.cost.profile import WAITED_MAX, Overhead
from penstock.drivers import messages as m
from penstock.engine.base import EngineInfo, Output
from penstock.engine.measure import waited_s
from penstock.engine.params import Sampling
from penstock.policies.bundles import make_instance

#: Times of each, and rounds for each of those where other processes disturb.
ROUNDS, TRIES = 9, 3
RUNNING = (1, 8, 32, 128, 256)
BATCHES = (1, 8, 32, 128)
#: Steps that the scheduler decides in one go.
_DECISIONS = 20
_TEXT = "The quick brown fox jumps over the lazy dog; 3.14 is about pi, and 2 + 2 = 4.\n" * 20


class Cell(NamedTuple):
    """One kind of overhead. `run` does some of it and returns ns for one."""

    name: str
    parameter: str
    run: Callable[[], float]


def measure(info: EngineInfo, folder: Path | None) -> list[Overhead]:
    """All overheads of an engine with such a vocabulary; of the text too, where there is a model folder."""
    with ExitStack() as stack:
        cells = [_decision(running) for running in RUNNING]
        cells += stack.enter_context(_round_trips())
        if folder is not None:
            cells += [_sampling(batch, info.vocab, greedy) for batch in BATCHES for greedy in (True, False)]
            cells += _text(folder)
        times: list[list[tuple[float, float]]] = [[] for _ in cells]
        for turn in range(TRIES * ROUNDS + 1):
            for cell, took in zip(cells, times, strict=True):
                if sum(share <= WAITED_MAX for share, _ in took) < ROUNDS:
                    timed = _timed(cell)
                    if turn:  # the first one warms up
                        took.append(timed)
    return [_overhead(cell, took) for cell, took in zip(cells, times, strict=True)]


def _timed(cell: Cell) -> tuple[float, float]:
    """(share of the time that threads waited for a core, ns of one)."""
    before_s, began_s = waited_s(), time.perf_counter()
    ns = cell.run()
    return (waited_s() - before_s) / (time.perf_counter() - began_s), ns


def _overhead(cell: Cell, took: list[tuple[float, float]]) -> Overhead:
    """By the times that nothing disturbed, or those that were disturbed least."""
    good = sum(share <= WAITED_MAX for share, _ in took)
    counted = [ns for _, ns in sorted(took)[: max(good, ROUNDS // 2)]]
    return Overhead(cell.name, cell.parameter, statistics.median(counted), statistics.stdev(counted), len(counted))


def table(overheads: list[Overhead]) -> str:
    """For people."""
    lines = [f"{'overhead':44} {'at':>14} {'median us':>11} {'deviation':>10}"]
    for o in overheads:
        lines.append(f"{o.name:44} {o.parameter:>14} {o.ns / 1e3:11.2f} {100 * o.deviation_ns / o.ns:8.0f} %")
    return "\n".join(lines)


def _decision(running: int) -> Cell:
    """One `handle` of an instance on which so many jobs decode."""
    limits = Limits(max_num_seqs=running, max_num_batched_tokens=8192)
    instance = make_instance(InstanceConfig(pages=running * 100, limits=limits))
    for job in range(running):
        unit = Unit("lm", 16 + _DECISIONS * (TRIES * ROUNDS + 3))
        instance.handle(Submitted(JobSpec(id=job, units=(unit,), known=16, arrival=job), 0), 0)
    while any(job.done < 16 for job in instance.jobs.values()):
        instance.handle(StepDone(min(instance.steps)), 0)

    def run() -> float:
        first = min(instance.steps)
        began = time.perf_counter_ns()
        for step in range(first, first + _DECISIONS):
            instance.handle(StepDone(step), step)
        return (time.perf_counter_ns() - began) / _DECISIONS

    return Cell("scheduler's decision for a step", f"{running} running", run)


@contextmanager
def _round_trips() -> Iterator[list[Cell]]:
    """A step's tokens to another thread over ZeroMQ, decoded there, and a word back."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    folder = tempfile.TemporaryDirectory(prefix="penstock-")
    here.bind(f"ipc://{folder.name}/echo")
    there.connect(f"ipc://{folder.name}/echo")
    echo = threading.Thread(target=_echo, args=(there,), name="echo")
    echo.start()
    try:
        yield [_round_trip(here, batch) for batch in BATCHES]
    finally:
        here.send(b"")
        echo.join()
        here.close()
        context.term()
        folder.cleanup()


def _round_trip(socket: "zmq.Socket[bytes]", batch: int) -> Cell:
    stepped = m.Stepped([(0, Output(job, 1, 7, [job])) for job in range(batch)])
    encoder = msgspec.msgpack.Encoder()

    def run() -> float:
        began = time.perf_counter_ns()
        for _ in range(_DECISIONS):
            socket.send(encoder.encode(stepped))
            socket.recv()
        return (time.perf_counter_ns() - began) / _DECISIONS

    return Cell("message round trip, a step's tokens (ZeroMQ)", f"{batch} tokens", run)


def _echo(socket: "zmq.Socket[bytes]") -> None:
    decoder = msgspec.msgpack.Decoder(m.ToHome)
    reply = msgspec.msgpack.encode(m.Ping(0))
    while frame := socket.recv():
        decoder.decode(frame)
        socket.send(reply)
    socket.close()


def _sampling(batch: int, vocab: int, greedy: bool) -> Cell:
    """Logits to tokens for a batch, on the CPU."""
    import torch

    from penstock.engine.sampling import Row, sample

    logits = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(batch))
    ways = Sampling(max_tokens=1, temperature=0) if greedy else Sampling(max_tokens=1, temperature=0.8, top_p=0.95)
    rows = [Row(ways, np.zeros(1, np.int64), 1) for _ in range(batch)]

    def run() -> float:
        began = time.perf_counter_ns()
        sample(logits, rows)
        return float(time.perf_counter_ns() - began)

    name = "sampling of a step, greedy" if greedy else "sampling of a step, temperature 0.8 top-p 0.95"
    return Cell(name, f"{batch} tokens", run)


def _text(folder: Path) -> list[Cell]:
    """Text to tokens and back, for each token."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(_TEXT, special=False)

    def encode() -> float:
        began = time.perf_counter_ns()
        tokenizer.encode(_TEXT, special=False)
        return (time.perf_counter_ns() - began) / len(ids)

    def decode() -> float:
        pieces = tokenizer.detokenizer(True)
        began = time.perf_counter_ns()
        for token in ids:
            pieces.push([token])
        return (time.perf_counter_ns() - began) / len(ids)

    return [Cell("tokenization, for each token", f"{len(ids)} tokens", encode),
            Cell("detokenization, for each token", "one by one", decode)]  # fmt: skip
