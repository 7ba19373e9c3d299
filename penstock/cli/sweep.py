"""`penstock bench sweep`: one run for each setting of a grid, live or simulated, and the curves that they make.

    penstock bench sweep --results DIR --rates 1 2 4 8 --slos ttft=200ms,tpot=50ms -- FLAGS OF bench serve
    penstock bench sweep --simulate --results DIR --rates 1:8:1 --cvs 1 4 --repeat 3 --slos ... -- FLAGS OF simulate

Runs are those of the verb itself, called with the cell's flags after the shared ones; where they lie says
`metrics.layout`. Runs that are there are not run again, and a run is there only when it is whole.
"""

import argparse
import ast
import importlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatch
from io import StringIO
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

import penstock
from penstock.cli import judge
from penstock.cli.judge import Source, Terms
from penstock.core.slo import Slo
from penstock.metrics import layout, plot, result
from penstock.metrics.layout import Cell, Origin, Sweep
from penstock.metrics.record import FAILED

#: Rates of a `start:stop:step` range are rounded to so many decimals, against sums such as 0.1 + 0.2.
_DECIMALS = 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    grid = parser.add_argument_group("grid", "every rate with every CV and number of prompts")
    grid.add_argument("--rates", nargs="+", metavar="R", help="requests/s: numbers, or ranges start:stop:step")
    grid.add_argument("--cells", help="instead: pairs of prompts and rate, as '[(100, 0.5), (200, 1.0)]'")
    grid.add_argument("--cvs", type=float, nargs="+", metavar="CV", help="of the gaps between arrivals; 1 is Poisson")
    grid.add_argument("--num-prompts", type=int, nargs="+", metavar="N", help="default: as the flags after -- say")
    grid.add_argument("--repeat", type=int, default=1, metavar="N", help="runs of each cell, with seeds from --seed on")
    run = parser.add_argument_group("runs")
    run.add_argument("--simulate", action="store_true", help="simulate instead of loading a server")
    run.add_argument("--results", type=Path, required=True, metavar="DIR", help="where runs are kept and looked for")
    run.add_argument("--only", default="*", metavar="PATTERN", help="of the cells' names, as 'rate=4*'")
    run.add_argument("--fresh", action="store_true", help="throw away the runs in DIR (those that --only names) first")
    run.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    judging = parser.add_argument_group("judging", "needs no runs of its own: see also bench report")
    judging.add_argument(
        "--slos", nargs="+", metavar="SLO", help="as ttft=200ms,tpot=50ms; default: --goodput after --"
    )
    judge.judging_arguments(judging)
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of bench serve, or of simulate, for all cells")


@dataclass
class _Verb:
    """What runs a cell."""

    name: str
    parser: argparse.ArgumentParser
    run: Callable[[argparse.Namespace], int]

    @staticmethod
    def of(simulate: bool) -> "_Verb":
        """Imported by name, since `bench` has this module among its verbs and `simulate` imports `bench`."""
        name = "simulate" if simulate else "bench serve"
        module = importlib.import_module("penstock.cli.simulate" if simulate else "penstock.cli.bench")
        parser = argparse.ArgumentParser(prog=f"penstock bench sweep ... -- (flags of {name})", allow_abbrev=False)
        (module.add_arguments if simulate else module.serve_arguments)(parser)
        return _Verb(name, parser, module.main if simulate else module.serve)


@dataclass
class _Plan:
    folder: Path
    verb: _Verb
    sweep: Sweep
    #: The flags that all cells share, parsed.
    shared: argparse.Namespace

    @property
    def runs(self) -> list[tuple[Cell, int]]:
        """Repeat by repeat, so that a slow drift of the machine meets all cells alike."""
        return [(cell, repeat) for repeat in range(self.sweep.repeats) for cell in self.sweep.cells]

    def path(self, cell: Cell, repeat: int) -> Path:
        return layout.path_of(self.folder, cell, repeat)

    def flags(self, cell: Cell, repeat: int) -> list[str]:
        """The last of equal flags counts, so these override the shared ones."""
        written = layout.partial(self.path(cell, repeat))
        flags = [*self.sweep.flags, "--request-rate", repr(cell.rate), "--seed", str(self.sweep.seed + repeat)]
        if cell.cv is not None:
            flags += ["--burstiness", repr(cell.cv**-2)]
        if cell.num_prompts is not None:
            flags += ["--num-prompts", str(cell.num_prompts)]
        if self.verb.name == "bench serve":
            # Lengths and times are those of the seed; were the words too, a server would know the prompts of the
            # cell before and find them in its prefix cache.
            flags += ["--prompt-seed", str(time.time_ns() % 2**32)]
        slos = [Slo.parse(text) for text in self.sweep.slos]
        # Only a run that was asked for multiples of idle times measures them.
        slo = next((s for s in slos if s.relative), slos[0])
        flags += ["--goodput", str(slo), "--disable-tqdm", "--save-result"]
        return [*flags, "--result-dir", str(written.parent), "--result-filename", written.name]

    def weight(self, cell: Cell) -> float:
        """Of a run's share in the time that the sweep takes: in s for live runs, in requests for simulated ones."""
        prompts = cell.num_prompts or self.shared.num_prompts or 1
        live = self.verb.name == "bench serve"
        return float(prompts / cell.rate if live else prompts)


def main(args: argparse.Namespace) -> int:
    """0 if every cell ran and was judged; 1 if one did not; 130 if stopped. Raises ValueError before any run."""
    plan = _plan(args)
    if args.plot:
        plot.check()
    _check_folder(plan, args.only, args.fresh)
    layout.save(plan.sweep, plan.folder)
    missing = [
        (cell, repeat)
        for cell, repeat in plan.runs
        if fnmatch(cell.name, args.only) and not plan.path(cell, repeat).exists()
    ]
    there = sum(plan.path(cell, repeat).exists() for cell, repeat in plan.runs)
    if there:
        print(f"{there} of {len(plan.runs)} runs are in {plan.folder} already and are not run again (see --fresh).")
    try:
        failed = _run_all(plan, missing, args.disable_tqdm)
    except KeyboardInterrupt:
        there = sum(plan.path(cell, repeat).exists() for cell, repeat in plan.runs)
        print(
            f"Stopped: {there} of {len(plan.runs)} runs are in {plan.folder}. The same command goes on from there; "
            "`penstock bench report` judges what is there.",
            file=sys.stderr,
        )
        return 130
    paths = [plan.path(cell, repeat) for cell, repeat in plan.runs]
    source = Source("", [path for path in paths if path.exists()], plan.sweep)
    return judge.conclude([source], Terms(), args, failed)


def _plan(args: argparse.Namespace) -> _Plan:
    verb = _Verb.of(args.simulate)
    shared = verb.parser.parse_args(args.flags)
    slos = args.slos or [" ".join(shared.goodput)]
    if not all(map(Slo.parse, slos)):
        raise ValueError("say what is good: --slos ttft=200ms,tpot=50ms")
    if args.repeat < 1:
        raise ValueError(f"--repeat {args.repeat}: must be at least 1")
    _check_flags(shared, args)
    sweep = Sweep(
        verb=verb.name,
        flags=args.flags,
        cells=cells_of(args),
        repeats=args.repeat,
        seed=shared.seed,
        slos=slos,
        slo_scales=args.slo_scales or [],
        target=args.target or judge.TARGET,
        warmup=shared.warmup,
        versions={"penstock": penstock.__version__, "python": platform.python_version(), "numpy": np.__version__},
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    return _Plan(args.results, verb, sweep, shared)


def _check_flags(shared: argparse.Namespace, args: argparse.Namespace) -> None:
    """Flags that a cell sets are not for all cells."""
    if shared.request_rate is not None:
        raise ValueError("--request-rate after -- is set by the cells: see --rates")
    if shared.arrival == "closed" or getattr(shared, "against", None):
        raise ValueError("a closed loop, or --against, has no request rate to sweep")
    if args.cvs and shared.arrival not in (None, "gamma"):
        raise ValueError(f"--cvs is of gamma arrivals, not of --arrival {shared.arrival}")


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid, without doubles. Raises ValueError where it is empty or has a number that is not positive."""
    if (args.rates is None) == (args.cells is None) or (args.cells and args.num_prompts):
        raise ValueError("give either --cells, or --rates with or without --num-prompts")
    pairs = _pairs(args.cells) if args.cells else list(product(args.num_prompts or [None], _rates(args.rates)))
    cells = [Cell(rate, cv, prompts) for cv in args.cvs or [None] for prompts, rate in pairs]
    for cell in cells:
        if not all(v is None or 0 < v < float("inf") for v in msgspec.structs.astuple(cell)):
            raise ValueError(f"cell {cell.name}: rates, CVs and numbers of prompts must be positive")
    return list(dict.fromkeys(cells))


def _rates(texts: Sequence[str]) -> list[float]:
    """Numbers and ranges `start:stop:step`, whose stop belongs to them."""
    rates: list[float] = []
    for text in texts:
        try:
            start, stop, step = map(float, text.split(":")) if ":" in text else (float(text), float(text), 1.0)
            count = int((stop - start) / step + 1e-9) + 1
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"--rates {text!r}: write numbers, or start:stop:step as in 1:8:1") from None
        rates += [round(start + k * step, _DECIMALS) for k in range(count)]
    return rates


def _pairs(text: str) -> list[tuple[int | None, float]]:
    """`[(num_prompts, rate), ...]`, a Python literal."""
    try:
        return [(int(prompts), float(rate)) for prompts, rate in ast.literal_eval(text)]
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"--cells {text!r}: write pairs as in [(100, 0.5), (200, 1.0)]") from None


def _check_folder(plan: _Plan, only: str, fresh: bool) -> None:
    """Throw away what is not wanted; raises ValueError where the folder has the runs of other flags."""
    there = layout.load(plan.folder)
    if there is None:
        return
    if fresh and only == "*":
        shutil.rmtree(plan.folder / "cells", ignore_errors=True)
        return
    if (there.verb, there.flags) != (plan.verb.name, plan.sweep.flags):
        raise ValueError(
            f"{plan.folder} has runs of `{there.verb} {shlex.join(there.flags)}`, not of `{plan.verb.name} "
            f"{shlex.join(plan.sweep.flags)}`: give another --results, or --fresh to throw them away"
        )
    for cell, repeat in plan.runs if fresh else []:
        if fnmatch(cell.name, only):
            plan.path(cell, repeat).unlink(missing_ok=True)


def _run_all(plan: _Plan, missing: Sequence[tuple[Cell, int]], quiet: bool) -> list[str]:
    """Run them; returns a line for each that failed."""
    failed = []
    shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
    total = sum(plan.weight(cell) for cell, _ in missing)
    with tqdm(total=total, bar_format=shape, smoothing=0, disable=quiet or not missing or None) as bar:
        for number, (cell, repeat) in enumerate(missing, 1):
            bar.set_description(f"{cell.name} repeat {repeat}, run {number} of {len(missing)}")
            try:
                _run(plan, cell, repeat)
            except Exception as error:
                # Whatever goes wrong in one cell, the others are worth having.
                failed.append(f"{cell.name} repeat {repeat}: {str(error) or type(error).__name__}")
            bar.update(plan.weight(cell))
    return failed


def _run(plan: _Plan, cell: Cell, repeat: int) -> None:
    """One run, and its file under its final name. Raises what the verb raises, and ValueError where nothing worked."""
    path = plan.path(cell, repeat)
    written = layout.partial(path)
    try:
        with redirect_stdout(StringIO()):
            plan.verb.run(plan.verb.parser.parse_args(plan.flags(cell, repeat)))
        saved = result.load(written)
        if saved.run.get("interrupted"):
            raise KeyboardInterrupt
        if all(r.outcome == FAILED for r in saved.records):
            raise ValueError(f"every request failed: {next((r.error for r in saved.records), '')}")
        origin = Origin(cell, repeat, plan.sweep.seed + repeat, penstock.__version__)
        saved.run[layout.ORIGIN] = msgspec.to_builtins(origin)
        result.save(saved, written)
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)
