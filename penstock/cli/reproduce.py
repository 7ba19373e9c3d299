"""Run published figures again, and hold their claims against ours.

    penstock reproduce                           the figures: what they claim, what they need
    penstock reproduce distserve/fig8            run those that begin so, in the twin
    penstock reproduce all --quick               all of them, smaller
    penstock reproduce llumnix/hello --live      its scaled-down form on real servers on this machine
    penstock reproduce plot --results DIR        draw again what has been run, also of a part
    penstock reproduce claims --results DIR      all claims as Markdown

Each leaves DIR/FIGURE/{figure.png,numbers.csv,figure.claim} and a file a run, which is not run again. A folder for each
figure, with what it runs, the paper's points and its claims: penstock/reproduce/. docs/reproduce.md has what we found.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from penstock.reproduce import claims, draw, figure, live, runs
from penstock.reproduce.figure import Figure
from penstock.reproduce.runs import Store

#: Instead of figures.
ACTIONS = ("plot", "claims")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="a name or its beginning, `all`, or an action")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="fewer points, shorter runs")
    how.add_argument("--live", action="store_true", help="on real servers on this machine, smaller")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: results/reproduce/full, quick or live")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cells whose name matches: 'DistServe*rate=2*'")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="runs a cell, each with the next seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    parser.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def main(args: argparse.Namespace) -> int:
    """0 if all that was asked for has been run, whatever the claims."""
    if args.repeat < 1 or args.jobs < 1:
        raise ValueError("--repeat and --jobs: at least 1")
    scale = "quick" if args.quick else "live" if args.live else "full"
    folder = args.results or Path("results/reproduce") / scale
    if not args.figures:
        print(_listing())
        return 0
    action = args.figures[0] if args.figures[0] in ACTIONS else ""
    asked = args.figures[bool(action) :] or ["all"]
    names = [name for name in figure.chosen(asked) if figure.has(name, scale)]
    if not names:
        raise ValueError(f"{', '.join(asked)}: there is no {scale} form")
    if action:
        found = [store for name in names if (store := Store(folder, figure.load(name, scale))).folder.is_dir()]
        if not found:
            raise ValueError(f"{folder} has no runs of {', '.join(asked)}")
        for store in found:
            print(_markdown(store) if action == "claims" else _write(store))
        return 0
    kept = total = 0
    for name in names:
        store = Store(folder, figure.load(name, scale))
        began = time.monotonic()
        _run(store, args)
        print(_write(store))
        verdicts = claims.judge(store)
        kept, total = kept + sum(verdict.holds for verdict in verdicts), total + len(verdicts)
        print(f"{name}: {time.monotonic() - began:.0f} s; {_count(verdicts)}\n", flush=True)
    print(f"{kept} of {total} claims hold in {len(names)} figures; {folder} has the results")
    return 0


def _run(store: Store, args: argparse.Namespace) -> None:
    if args.fresh:
        store.forget(args.only)
    with tqdm(total=0, unit="run", desc=store.figure.name, leave=False, disable=args.disable_tqdm or None) as bar:

        def more(count: int) -> None:
            bar.total = (bar.total or 0) + count
            bar.refresh()

        common = {"repeats": args.repeat, "only": args.only, "on_cells": more, "on_run": bar.update}
        if args.live:
            with live.Servers(store.folder / "logs") as servers:
                runs.run(store, measure=servers.measure, **common)
        else:
            runs.run(store, jobs=args.jobs, **common)


def _write(store: Store) -> str:
    """Figure, numbers and claims, as files; the claims as text."""
    draw.draw(store, store.folder / "figure.png")
    draw.write_csv(store, store.folder / "numbers.csv")
    text = claims.render(store)
    (store.folder / "figure.claim").write_text(text, "utf-8")
    return text


def _markdown(store: Store) -> str:
    """A section about the figure, for a page that lies beside the folder with the results."""
    one = store.figure
    picture = Path(*store.folder.parts[-3:]) / "figure.png"
    remarks = "".join(f"* {' '.join(remark.split())}\n" for remark in _remarks(one))
    parts = [f"### {one.name}", f"{one.title}. {one.paper}.", f"![]({picture})", claims.markdown(store), remarks]
    return "\n\n".join(filter(None, parts))


def _remarks(one: Figure) -> list[str]:
    return [*one.remarks, *(f"{claim.says}: {claim.remark}" for claim in one.claims if claim.remark)]


def _count(verdicts: Sequence[claims.Verdict]) -> str:
    return f"{sum(verdict.holds for verdict in verdicts)} of {len(verdicts)} claims hold"


def _listing() -> str:
    lines = [f"{'figure':<26}{'full':>8}{'quick':>8}  what it shows; the paper's hardware"]
    for name in figure.names():
        one = figure.load(name)
        said = f" (--live: {' '.join(one.live_about.split())})" if figure.has(name, "live") else ""
        lines.append(f"{name:<26}{_minutes(one.minutes):>8}{_minutes(one.quick_minutes):>8}  {one.title}{said}")
        lines.append(f"{'':<44}{one.paper}; {one.hardware}")
        lines += [f"{'':<44}- {claim.says}" for claim in one.claims]
    return "\n".join([*lines, "", "Minutes of one core, in the twin. `penstock reproduce FIGURE --quick` runs one."])


def _minutes(minutes: float) -> str:
    return f"{minutes:g} min"
