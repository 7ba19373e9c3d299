"""Published claims held against what was run. A claim that cannot be decided does not hold."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, median

import msgspec

from penstock.reproduce.figure import Claim, points
from penstock.reproduce.runs import Store, line

Line = Sequence[tuple[float, float]]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A claim, and ours."""

    claim: Claim
    ours: float | None
    #: It is at least that: what would say more was not run.
    at_least: bool = False
    #: What it was computed from, or what is missing.
    told: str = ""

    @property
    def holds(self) -> bool:
        if self.ours is None:
            return False
        low, high = self.claim.bounds
        return low <= self.ours and (self.ours <= high and not (self.at_least and high < float("inf")))

    @property
    def said(self) -> str:
        if self.ours is None:
            return "not known"
        return f"{'> ' if self.at_least else ''}{self.ours:.3g}"


class _Unknown(Exception):
    """What is missing."""


def judge(store: Store) -> list[Verdict]:
    """All claims of a figure."""
    return [_judge(store, claim) for claim in store.figure.claims]


def _judge(store: Store, claim: Claim) -> Verdict:
    try:
        ours, at_least, told = _TAKES[claim.take](store, claim)
    except _Unknown as missing:
        return Verdict(claim=claim, ours=None, told=str(missing))
    return Verdict(claim=claim, ours=ours, at_least=at_least, told=told)


def _line(store: Store, claim: Claim, row: str) -> Line:
    found = line(store, claim.panel, row, claim.y)
    if not found:
        raise _Unknown(f"{row} has not been run")
    return found


def _value(store: Store, claim: Claim) -> tuple[float, bool, str]:
    ours = dict(_line(store, claim, claim.of))
    if claim.over:
        theirs = dict(_line(store, claim, claim.over))
        ours = {x: y / theirs[x] for x, y in ours.items() if theirs.get(x)}
        if not ours:
            raise _Unknown("they have no x in common, or it is 0")
    told = ", ".join(f"{x:g}: {y:.3g}" for x, y in ours.items())
    if isinstance(claim.at, float | int):
        if claim.at not in ours:
            raise _Unknown(f"nothing was run at {claim.at:g}")
        return ours[claim.at], False, told
    return _PICKS[claim.at](claim, list(ours.values())), False, told


def _furthest(claim: Claim, values: Sequence[float]) -> float:
    low, high = claim.bounds
    return max(values, key=lambda v: max(low - v, v - high))


_PICKS: dict[str, Callable[[Claim, Sequence[float]], float]] = {
    "max": lambda claim, values: max(values),
    "min": lambda claim, values: min(values),
    "mean": lambda claim, values: fmean(values),
    "median": lambda claim, values: median(values),
    "all": _furthest,
}


def _crossing(store: Store, claim: Claim) -> tuple[float, bool, str]:
    ours, open_ours = _cross(_line(store, claim, claim.of), claim)
    told = f"{claim.of}: {_bound(ours, open_ours)}"
    if not claim.over:
        return ours, open_ours > 0, told
    theirs, open_theirs = _cross(_line(store, claim, claim.over), claim)
    told += f", {claim.over}: {_bound(theirs, open_theirs)}"
    if open_ours < 0 or open_theirs > 0:
        raise _Unknown(f"where they cross is not in what was run: {told}")
    return ours / theirs, bool(open_ours or open_theirs), told


def _bound(value: float, open_end: int) -> str:
    return f"{('', '> ', '< ')[open_end]}{value:.4g}"


def _cross(found: Line, claim: Claim) -> tuple[float, int]:
    """x where y passes the level, from the easy end, where it is on the right side, to the hard one. And where it does
    not, what is known of it: 1, it is at least that x; -1, at most."""
    level = claim.level
    if level is None:
        raise _Unknown("the claim gives no level")
    # Shares are to be above the level and fall; times are to be below it and rise, as it gets harder.
    falling = level <= 1 and max(y for _, y in found) <= 1

    def keeps(y: float) -> bool:
        return y >= level if falling else y <= level

    # Over SLO scales, and over instances, the easy end is the last.
    turned = -1 if found[0][1] != found[-1][1] and falling == (found[0][1] < found[-1][1]) else 1
    found = found[::turned]
    if not keeps(found[0][1]):
        return found[0][0], -turned
    for (x, y), (x_next, y_next) in pairwise(found):
        if not keeps(y_next):
            return x + (x_next - x) * (y - level) / (y - y_next), 0
    return found[-1][0], turned


def _order(store: Store, claim: Claim) -> tuple[float, bool, str]:
    lines = [dict(_line(store, claim, row)) for row in claim.rows]
    common = [x for x in lines[0] if all(x in other for other in lines)]
    if not common:
        raise _Unknown("they have no x in common")
    kept = [
        x for x in common
        if all(low[x] <= high[x] * (1 + claim.slack) for low, high in pairwise(lines))
    ]  # fmt: skip
    broken = ", ".join(f"{x:g}" for x in common if x not in kept)
    return len(kept) / len(common), False, f"{len(kept)} of {len(common)}" + f", not at {broken}" * bool(broken)


def _points(store: Store, claim: Claim) -> tuple[float, bool, str]:
    ours = dict(_line(store, claim, claim.of))
    theirs = {p.x: p.y for p in points(store.figure.name) if (p.panel, p.row) == (claim.panel, claim.of)}
    common = [x for x in theirs if x in ours]
    if not common:
        raise _Unknown("the paper's points are at other places")
    shares = max(theirs.values()) <= 1
    apart = [abs(ours[x] - theirs[x]) / (0.01 if shares else theirs[x] or 1e-9) for x in common]
    return median(apart), False, f"{len(common)} points, at most {max(apart):.3g}" + " points" * shares


_TAKES = {"value": _value, "crossing": _crossing, "order": _order, "points": _points}


def render(store: Store) -> str:
    """A `.claim` file."""
    figure = store.figure
    lines = [f"# {figure.name} ({figure.scale}): {figure.paper}", f"# to be seen: {' '.join(figure.expect.split())}"]
    for verdict in judge(store):
        claim = verdict.claim
        lines += ["", f"claim      {claim.says}", f"published  {_published(claim)}", f"ours       {verdict.said}"]
        lines += [f"from       {verdict.told}"] * bool(verdict.told)
        lines += [f"accepted   {accepted(claim)}", f"holds      {'yes' if verdict.holds else 'no'}"]
        lines += [f"remark     {claim.remark}"] * bool(claim.remark)
    return "\n".join(lines) + "\n"


def _published(claim: Claim) -> str:
    return "in words" if claim.published is None else f"{claim.published}"


def accepted(claim: Claim) -> str:
    """In words."""
    low, high = claim.bounds
    if high == float("inf"):
        return f"at least {low:.3g}"
    return f"at most {high:.3g}" if low == -float("inf") else f"{low:.3g} to {high:.3g}"


def markdown(store: Store) -> str:
    """A table of the figure's claims."""
    lines = ["| claim | published | ours | accepted | holds |", "|---|---|---|---|---|"]
    for verdict in judge(store):
        claim = verdict.claim
        lines.append(
            f"| {claim.says} | {_published(claim)} | {verdict.said} | {accepted(claim)} | "
            f"{'yes' if verdict.holds else '**no**'} |"
        )
    return "\n".join(lines)
