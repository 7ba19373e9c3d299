"""A published figure: what is run, what is drawn, what the paper says. Reads folders; runs nothing.

    penstock/reproduce/distserve/fig8-13b/figure.yaml     `Figure`; `quick:` and `live:` go over it where asked for
    penstock/reproduce/distserve/fig8-13b/paper.csv       panel,row,x,y: the paper's points, in the panel's units
    penstock/reproduce/presets.yaml                       engines of the time, as keys of a pool

`like: distserve/fig8-66b` begins with another figure's file; mappings are merged, all else replaced; null takes away.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from penstock.core.slo import Slo
from penstock.drivers.deployment import Deployment
from penstock.plan.space import Cluster, Option, Space, options

ROOT = Path(__file__).parent
SCALES = ("full", "quick", "live")
#: What a panel's x may be.
OVER = ("rate", "cv", "slo_scale", "at")


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of figure.yaml."""


class LoadSpec(_Spec, frozen=True, kw_only=True):
    """Requests of a run, as `penstock trace synthesize` takes them."""

    lengths: str
    output_lengths: str | None = None
    arrival: str = "poisson"
    #: Requests/s, where no panel says otherwise; and how many in a run.
    rate: float = 1.0
    cv: float = 1.0
    requests: int
    #: Rate and requests are those of each GPU.
    per_gpu: bool = False
    #: This share is more urgent than the others.
    urgent: float = 0.0
    seed: int = 0


class SpaceSpec(_Spec, frozen=True, kw_only=True):
    """Deployments among which a row takes the one that is best where the load is hardest, panel by panel."""

    model: str
    cluster: str
    policies: list[str]
    affinity: str = "high"
    tps: list[int] = []
    pps: list[int] = []
    cost: str = ""
    pool: dict[str, Any] = {}
    move_gb_per_s: float | None = None

    def options(self, slo: Slo) -> list[Option]:
        """Those that can be."""
        space = Space(
            model=self.model, cluster=Cluster.parse(self.cluster), slo=slo, policies=self.policies,
            affinity=self.affinity, tps=self.tps, pps=self.pps, ratios=((1, 1),), cost=self.cost, pool=self.pool,
            move_gb_per_s=self.move_gb_per_s,
        )  # fmt: skip
        return [option for option in options(space) if not option.reason]


class RowSpec(_Spec, frozen=True, kw_only=True):
    """A line of the figure."""

    #: Colour, marker, and dashes if not solid: `#0072b2 D --`.
    style: str
    deployment: dict[str, Any] = {}
    #: An engine of `presets.yaml`: its keys stand where a pool says nothing.
    preset: str = ""
    best_of: SpaceSpec | None = None
    #: Over the figure's load, and GPUs that count, where not all do.
    load: dict[str, Any] = {}
    gpus: int | None = None
    #: It is not told which requests are urgent.
    blind: bool = False
    #: Flags of `penstock serve`, for `--live`.
    serve: list[str] = []
    #: It is not of the paper: what is usual today.
    today: bool = False


class Panel(_Spec, frozen=True, kw_only=True):
    """Axes, and what is drawn on them."""

    title: str
    #: One of `OVER`; `at`: over named changes of the figure.
    over: str = "rate"
    xs: list[float] = []
    #: Changes of row and load, by a number that is their x.
    at: dict[float, dict[str, Any]] = {}
    #: A number of `numbers.Numbers`; its axis, and what it is multiplied with.
    y: str
    times: float = 1.0
    #: A number that is the x, instead of what the panel is over.
    x: str = ""
    xlabel: str = ""
    log: bool = False
    #: What is the same for all its points; None: the load's.
    rate: float | None = None
    cv: float | None = None
    #: line, cdf (of a quantity that is kept by quantiles), or parts (shares, stacked: y is their common prefix).
    kind: str = "line"
    #: A line across.
    target: float | None = None
    rows: list[str] = []

    @property
    def places(self) -> list[float]:
        """All x."""
        return list(self.at) if self.over == "at" else list(self.xs)


class Claim(_Spec, frozen=True, kw_only=True):
    """What the paper says, as a number and what is accepted of ours."""

    says: str
    panel: str
    #: value (of y), crossing (x at which y passes `level`), order (share of x at which `rows` are from the lowest y to
    #: the highest), points (the median distance to the paper's points, as a share of these or, for shares, in points)
    take: str = "value"
    of: str = ""
    #: As a multiple of this row's.
    over: str = ""
    #: Of this number, if not the panel's.
    y: str = ""
    #: At this x, or max, min, mean, all over those that both have; `all`: the one that is furthest from the claim.
    at: float | str = "mean"
    level: float | None = None
    rows: list[str] = []
    #: How far a row may be out of order, as a share.
    slack: float = 0.0
    published: float | str | None = None
    #: Accepted: the published number within this share of it, within this factor, or these bounds.
    within: float | None = None
    factor: float | None = None
    least: float | None = None
    most: float | None = None
    #: What is left of the claim, or why it does not hold.
    remark: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """What is accepted. Raises ValueError where the claim says nothing that could fail."""
        low, high = -float("inf"), float("inf")
        if isinstance(self.published, int | float) and self.within is not None:
            low, high = self.published * (1 - self.within), self.published * (1 + self.within)
        if isinstance(self.published, int | float) and self.factor is not None:
            low, high = self.published / self.factor, self.published * self.factor
        if self.least is not None:
            low = max(low, self.least)
        if self.most is not None:
            high = min(high, self.most)
        if (low, high) == (-float("inf"), float("inf")):
            raise ValueError(f"the claim {self.says!r} accepts anything: give within, factor, least or most")
        return low, high


class Figure(_Spec, frozen=True, kw_only=True):
    """See the module's docstring."""

    name: str = ""
    title: str
    paper: str
    #: What the paper ran it on.
    hardware: str
    #: What it takes here, minutes of one core as measured: full, and quick.
    minutes: float
    quick_minutes: float
    #: What one must see.
    expect: str
    remarks: list[str] = []
    #: What is measured: serving, or a module of its own (`runs.MEASURES`).
    measure: str = "serving"
    slo: str = ""
    load: LoadSpec
    rows: dict[str, RowSpec]
    panels: dict[str, Panel]
    claims: list[Claim] = []
    #: Which of `SCALES` this is.
    scale: str = "full"
    #: What `--live` serves and sends, in words.
    live_about: str = ""

    @property
    def promise(self) -> Slo:
        return Slo.parse(self.slo)

    @property
    def slo_scales(self) -> list[float]:
        """All that are asked for."""
        return sorted({x for panel in self.panels.values() if panel.over == "slo_scale" for x in panel.xs})

    def lines(self, panel: Panel) -> list[str]:
        """Rows of a panel."""
        return panel.rows or list(self.rows)

    def deployment(self, row: str, change: Mapping[str, Any]) -> Deployment:
        """What a row deploys. Raises ValueError that names the figure and the row."""
        spec = self.rows[row]
        raw = merged(spec.deployment, change.get("deployment", {}))
        preset = presets().get(spec.preset, {})
        if spec.preset and not preset:
            raise ValueError(
                f"{self.name}, {row}: there is no preset {spec.preset!r}; there are {', '.join(presets())}"
            )
        raw["pools"] = [merged(preset, pool) for pool in raw.get("pools", [])]
        try:
            return msgspec.convert(raw, Deployment)
        except msgspec.ValidationError as error:
            raise ValueError(f"{self.name}, {row}: {error}") from None

    def load_of(self, row: str, change: Mapping[str, Any]) -> LoadSpec:
        """The requests that a row gets."""
        raw = merged(merged(msgspec.to_builtins(self.load), self.rows[row].load), change.get("load", {}))
        return msgspec.convert(raw, LoadSpec)


class Point(msgspec.Struct, frozen=True):
    """Of the paper."""

    panel: str
    row: str
    x: float
    y: float


def names() -> list[str]:
    """Of all figures, in order."""
    return sorted((str(path.parent.relative_to(ROOT)) for path in ROOT.glob("*/*/figure.yaml")), key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """fig8 before fig10."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [(0, name.split("/")[0]), (int(digits[0]) if digits else 0, name)]


def chosen(asked: Sequence[str]) -> list[str]:
    """Figures that are meant by names or the beginnings of names: `distserve/fig8` is `distserve/fig8-13b` and others.
    Raises ValueError for one that means none."""
    found: dict[str, None] = {}
    for name in asked:
        of = [one for one in names() if name == "all" or one == name or _begins(one, name)]
        if not of:
            raise ValueError(f"there is no figure {name!r}; `penstock reproduce` lists them")
        found.update(dict.fromkeys(of))
    return list(found)


def _begins(name: str, start: str) -> bool:
    """With a whole number at the end: fig1 is not fig10."""
    start = start.rstrip("/")
    return name.startswith(start) and not (start[-1:].isdigit() and name[len(start) : len(start) + 1].isdigit())


def load(name: str, scale: str = "full") -> Figure:
    """Raises ValueError that says what is wrong in the file, and where it cannot be had at that scale."""
    raw = dict(_raw(name))
    over = {key: raw.pop(key, None) for key in SCALES[1:]}
    if scale != "full":
        if over[scale] is None:
            raise ValueError(f"{name} has no {scale} form")
        raw = merged(raw, over[scale])
    try:
        figure = msgspec.convert(raw | {"name": name, "scale": scale}, Figure)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}/figure.yaml: {error}") from None
    _check(figure)
    return figure


def has(name: str, scale: str) -> bool:
    """Whether there is such a form of it."""
    return scale == "full" or _raw(name).get(scale) is not None


@cache
def _raw(name: str) -> dict[str, Any]:
    raw = yaml.safe_load((ROOT / name / "figure.yaml").read_text("utf-8"))
    like = raw.pop("like", None)
    return merged(_raw(like), raw) if like else dict(raw)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Engine -> keys of a pool."""
    read: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "presets.yaml").read_text("utf-8"))
    return {name: {k: v for k, v in entry.items() if k != "about"} for name, entry in read.items()}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, all else is replaced; None takes away."""
    both = dict(base)
    for key, value in over.items():
        if value is None:
            both.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(both.get(key), Mapping):
            both[key] = merged(both[key], value)
        else:
            both[key] = value
    return both


def points(name: str) -> list[Point]:
    """The paper's, none where it printed none."""
    path = ROOT / name / "paper.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [Point(r["panel"], r["row"], float(r["x"]), float(r["y"])) for r in csv.DictReader(_told(file))]


def _told(lines: Iterator[str]) -> Iterator[str]:
    return (line for line in lines if not line.startswith("#"))


def _check(figure: Figure) -> None:
    for key, panel in figure.panels.items():
        if panel.over not in OVER:
            raise ValueError(f"{figure.name}, panel {key}: over {panel.over!r}: choose one of {', '.join(OVER)}")
        for row in panel.rows:
            if row not in figure.rows:
                raise ValueError(f"{figure.name}, panel {key}: there is no row {row!r}")
    for claim in figure.claims:
        if claim.panel not in figure.panels:
            raise ValueError(f"{figure.name}: the claim {claim.says!r} is of a panel {claim.panel!r} that is not there")
        for row in filter(None, (claim.of, claim.over, *claim.rows)):
            if row not in figure.rows:
                raise ValueError(f"{figure.name}: the claim {claim.says!r} is of a row {row!r} that is not there")
        claim.bounds  # noqa: B018 - raises where nothing could fail
