"""Judges saved runs, of a sweep or any others: reads them, prints the table, writes CSV and draws. Runs nothing."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from penstock.core.slo import Slo
from penstock.metrics import curve_plot, curve_table, curves, layout, plot, result
from penstock.metrics.curves import Judged, Point, Series
from penstock.metrics.layout import Cell

TARGET = 0.9
#: What the client may be late by at P99 before its numbers are put in doubt.
LATE_MS = 10.0


def judging_arguments(group: Any) -> None:
    group.add_argument("--slo-scales", type=float, nargs="+", metavar="K", help="judge by the SLO times these too")
    group.add_argument("--target", type=_share, help=f"share of requests to find the crossing of; default: {TARGET}")
    group.add_argument("--plot", metavar="PNG", help="draw attained over rate and SLO scale; of one file, latencies")
    group.add_argument("--plot-rate", type=float, metavar="R", help="the rate at which to draw SLO scales")
    group.add_argument("--csv", metavar="FILE", help="the table, and each SLO scale, for other programs")


@dataclass
class Terms:
    """By what to judge. Empty or None: as the runs' own sweep says."""

    slos: list[Slo] = field(default_factory=list)
    scales: list[float] | None = None
    target: float | None = None
    warmup: dict[str, Any] | None = None

    def of(self, sweep: layout.Sweep | None) -> "Terms":
        """With what is missing from the sweep's description, or from nowhere."""
        return Terms(
            self.slos or [Slo.parse(text) for text in (sweep.slos if sweep else [])],
            (sweep.slo_scales if sweep else []) if self.scales is None else self.scales,
            self.target or (sweep.target if sweep else TARGET),
            (sweep.warmup if sweep else {}) if self.warmup is None else self.warmup,
        )


@dataclass
class Source:
    """Runs that belong to one curve, or to several that differ by more than the rate."""

    label: str
    paths: list[Path]
    sweep: layout.Sweep | None = None


def sources(texts: Sequence[str]) -> list[Source]:
    """Each text is `FILE`, `DIR`, or either after `LABEL=`. Equal labels are one source, and so are files without any.

    Where there are several, a folder without a label has its name for one. Raises ValueError where there are no runs.
    """
    groups: dict[str, list[Path]] = {}
    for text in texts:
        label, path = _labelled(text)
        if not label and path.is_dir() and len(texts) > 1:
            label = path.name
        groups.setdefault(label, []).append(path)
    found = []
    for label, paths in groups.items():
        sweep = layout.load(paths[0]) if len(paths) == 1 and paths[0].is_dir() else None
        found.append(Source(label, [run for path in paths for run in layout.runs_in(path)], sweep))
    return found


def _labelled(text: str) -> tuple[str, Path]:
    label, path = "", Path(text)
    # The folders of cells have an `=` in their names.
    if not path.exists() and "=" in text:
        label, _, rest = text.partition("=")
        path = Path(rest)
    if not path.exists():
        raise ValueError(f"there is no {path}: give files, folders, or LABEL=FOLDER")
    return label, path


def conclude(sources: Sequence[Source], asked: Terms, args: argparse.Namespace, failed: Sequence[str] = ()) -> int:
    """Print, write and draw. 0 unless a run could not be judged or `failed` has lines, which become rows."""
    if args.plot:
        plot.check()
    terms = _common(sources, asked)
    verdicts = [_judge(source, terms) for source in sources]
    judged = [one for verdict in verdicts for one in verdict.series()]
    lines = [*failed, *(line for verdict in verdicts for line in verdict.failed)]
    warnings = [
        *_named(
            f"the client was more than {LATE_MS:g} ms late (P99); latencies may be its own", [v.late for v in verdicts]
        ),
        *_named("equal to another run of its cell, so +- is of no meaning", [v.equal for v in verdicts]),
    ]
    scales, target = terms.scales or [], terms.target or TARGET
    print(curve_table.render(judged, target, scales, lines, warnings))
    if judged and args.csv:
        curve_table.write_csv(judged, args.csv)
        print(f"The table is in {args.csv}")
    if judged and args.plot:
        curve_plot.draw(judged, args.plot, target, scales, args.plot_rate)
        print(f"Curves are drawn in {args.plot}")
    return 1 if lines or not judged else 0


def _common(sources: Sequence[Source], asked: Terms) -> Terms:
    """What all sources are judged by; curves that were judged differently are not comparable."""
    terms = [asked.of(source.sweep) for source in sources if source.sweep] or [asked.of(None)]
    if any(other != terms[0] for other in terms):
        raise ValueError("these sweeps were judged differently: give --goodput, --slo-scales, --target and --warmup")
    for scale in terms[0].scales or []:
        curves.scaled(Slo(), scale)
    return terms[0]


@dataclass
class _Verdict:
    """What is known of a source's runs."""

    label: str
    #: Repeat and run, for each SLO and cell.
    runs: dict[tuple[Slo, Cell], list[tuple[int, Judged]]] = field(default_factory=dict)
    #: A line for each run that cannot be judged.
    failed: list[str] = field(default_factory=list)
    #: Runs whose client was late, and those that have the very records of another of their cell.
    late: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)

    def series(self) -> list[Series]:
        points: dict[Slo, list[Point]] = {}
        for (slo, cell), members in self.runs.items():
            ordered = tuple(one for _, one in sorted(members, key=lambda member: member[0]))
            points.setdefault(slo, []).append(Point(cell, ordered))
        return [one for slo, members in points.items() for one in curves.series(self.label, slo, members)]


def _judge(source: Source, terms: Terms) -> _Verdict:
    """One file is in memory at a time."""
    verdict, seen = _Verdict(source.label), set()
    for path in source.paths:
        try:
            saved = result.load(path)
            cell, repeat = layout.cell_of(saved), layout.repeat_of(saved)
            for slo in terms.slos or [saved.summary.goodput.slo if saved.summary.goodput else Slo()]:
                one = curves.judge(saved.records, slo, terms.scales or [], **(terms.warmup or {}))
                verdict.runs.setdefault((slo, cell), []).append((repeat, one))
        except (ValueError, OSError) as error:
            said = str(error)
            verdict.failed.append(said if str(path) in said else f"{path}: {said}")
            continue
        name = " ".join(filter(None, [source.label, cell.name, f"repeat {repeat}"]))
        if any(dist and dist.percentiles_ms[99.0] > LATE_MS for dist in saved.client.values()):
            verdict.late.append(name)
        content = cell, hash(msgspec.json.encode(saved.records))
        if content in seen:
            verdict.equal.append(name)
        seen.add(content)
    return verdict


def _named(said: str, groups: Iterable[list[str]]) -> list[str]:
    """A warning that names runs, not too many; nothing for none."""
    names = [name for group in groups for name in group]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [f"WARNING: {said}: {'; '.join(names[:4])}{more}."] if names else []


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: a share is above 0 and at most 1, as in 0.9")
    return value
