"""The story of a request: what happened to it, and when; and, of that, what made it slow.

A home writes it as things happen: placed, moved, replayed, tokens, the end. Instances add what only they see (`Note`),
with their next message: chunks of the prompt, preemptions. Their times are shifted to the home's clock by when the
message came, so they are late by what a message takes. In one told from logs, all times are those of the logs.
"""

from array import array
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import msgspec

from penstock.core.move import MoveEnded
from penstock.core.moves import Phase
from penstock.core.slo import MS, Bounds, tpot
from penstock.core.spec import JobSpec

#: Gaps between tokens that are shown, at most: the longest.
_GAPS = 16
#: Without a promise, a gap is long that is so many times the median one.
_LONG = 2.0
_PHASES = ("reserve", "copy", "stop", "switch", "release")
assert len(_PHASES) == len(Phase)


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What an instance says of a job: from `start` to `end`, ns on its clock, a step executed `count` known positions
    (of the prompt, or computed again); `count` 0: it was preempted."""

    job: int
    start: int
    end: int
    count: int


class Mark(msgspec.Struct, frozen=True):
    """Something that happened, from `at` to `until`, ns on the home's clock."""

    what: str
    at: int
    until: int
    instance: int | None = None
    why: str = ""
    tokens: int = 0
    move: MoveEnded | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A mark, for people. Times in ms since arrival."""

    at_ms: float
    what: str
    until_ms: float | None = None
    instance: int | None = None
    to: int | None = None
    why: str = ""
    #: Positions that a chunk executed.
    tokens: int = 0
    #: Of a move: why it came to nothing, positions copied and computed again, its phases, and its downtime.
    failed: str = ""
    copied: int = 0
    computed_again: int = 0
    phases_ms: dict[str, float] = {}
    down_ms: float = 0.0


class Ttft(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time to the first token went: until the first chunk began, while chunks ran, and else (between chunks;
    messages)."""

    ms: float
    promised_ms: float | None
    late: bool
    queue_ms: float
    compute_ms: float
    else_ms: float


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A long pause between two tokens: before output token `token` (from 0), and what happened in it."""

    token: int
    at_ms: float
    ms: float
    happened: list[str]


class Tpot(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens after the first came."""

    ms: float
    promised_ms: float | None
    late: bool
    median_ms: float
    #: The longest of those that are longer than was promised, else than twice the median; in order.
    gaps: list[Gap]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A story, for people. `job` is its number in logs."""

    job: int
    #: Empty while it goes on.
    outcome: str
    prompt_tokens: int
    output_tokens: int
    ttft: Ttft | None
    tpot: Tpot | None
    events: list[Event]


class Story:
    """Of one job."""

    __slots__ = ("id", "marks", "outcome", "spec", "times")

    def __init__(self, spec: JobSpec) -> None:
        self.id = spec.id
        #: As it came.
        self.spec = spec
        self.marks: list[Mark] = [Mark("queued", spec.arrival, spec.arrival)]
        #: When each token came.
        self.times = array("q")
        #: Empty while it goes on.
        self.outcome = ""

    def tell(self, what: str, now: int, instance: int | None = None, why: str = "") -> None:
        """Something happened at this moment."""
        self.marks.append(Mark(what, now, now, instance, why))

    def note(self, note: Note, instance: int, shift: int) -> None:
        """An instance says; its clock is `shift` ns behind."""
        what = "chunk" if note.count else "preempted"
        self.marks.append(Mark(what, note.start + shift, note.end + shift, instance, tokens=note.count))

    def moved(self, move: MoveEnded, source: int, now: int) -> None:
        """A move of the job is over by now."""
        self.marks.append(Mark("move", now - sum(move.phases), now, source, move.why, move=move))

    def end(self, outcome: str, now: int, why: str = "") -> None:
        if not self.outcome:
            self.outcome = outcome
            self.tell(outcome, now, why=why)

    def at(self, when: int) -> int | None:
        """The instance that it was on."""
        placed = [mark for mark in self.marks if mark.what == "placed" and mark.at <= when]
        return placed[-1].instance if placed else None

    def chunks(self) -> Iterator[Mark]:
        return (mark for mark in self.marks if mark.what == "chunk")


class Stories:
    """The latest ones, so many at most."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._kept: dict[int, Story] = {}

    def add(self, story: Story) -> None:
        if len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[story.id] = story

    def get(self, job: int) -> Story | None:
        return self._kept.get(job)

    def __iter__(self) -> Iterator[Story]:
        return iter(self._kept.values())

    def told(self, story: Story, bounds: Bounds = Bounds()) -> Told:
        """For people, against what was promised."""
        return Told(
            job=story.id,
            outcome=story.outcome,
            prompt_tokens=story.spec.known,
            output_tokens=len(story.times),
            ttft=_ttft(story, bounds) if story.times else None,
            tpot=self._tpot(story, bounds) if len(story.times) > 1 else None,
            events=_events(story),
        )

    def _tpot(self, story: Story, bounds: Bounds) -> Tpot:
        times, arrival = story.times, story.spec.arrival
        mean = tpot(times[0] - arrival, times[-1] - arrival, len(times)) or 0.0
        gaps = [end - start for start, end in pairwise(times)]
        middle = median(gaps)
        limit = bounds.tpot_ns if bounds.tpot_ns is not None else _LONG * middle
        long = sorted((i for i, gap in enumerate(gaps, 1) if gap > limit), key=lambda i: -gaps[i - 1])[:_GAPS]
        return Tpot(
            ms=_ms(mean),
            promised_ms=None if bounds.tpot_ns is None else _ms(bounds.tpot_ns),
            late=bounds.tpot_ns is not None and mean > bounds.tpot_ns,
            median_ms=_ms(middle),
            gaps=[self._gap(story, index) for index in sorted(long)],
        )

    def _gap(self, story: Story, index: int) -> Gap:
        start, end = story.times[index - 1], story.times[index]
        own = [mark for mark in story.marks if mark.at < end and (mark.until > start or mark.at >= start)]
        happened = [_happened(mark, start, end) for mark in sorted(own, key=lambda mark: mark.at)]
        others = sum(self._beside(story, start, end))
        if others:
            happened.append(f"{others} prompt tokens of other requests")
        return Gap(token=index, at_ms=_ms(start - story.spec.arrival), ms=_ms(end - start), happened=happened)

    def _beside(self, story: Story, start: int, end: int) -> Iterator[int]:
        """Positions of chunks of others that ran on the same instance meanwhile."""
        instance = story.at(start)
        for other in self._kept.values():
            if other is not story:
                yield from (
                    c.tokens for c in other.chunks() if c.instance == instance and c.at < end and c.until > start
                )


def _ttft(story: Story, bounds: Bounds) -> Ttft:
    arrival, first = story.spec.arrival, story.times[0]
    chunks = [chunk for chunk in story.chunks() if chunk.at < first]
    began = min((chunk.at for chunk in chunks), default=first)
    computed = sum(min(chunk.until, first) - chunk.at for chunk in chunks)
    took = first - arrival
    return Ttft(
        ms=_ms(took),
        promised_ms=None if bounds.ttft_ns is None else _ms(bounds.ttft_ns),
        late=bounds.ttft_ns is not None and took > bounds.ttft_ns,
        queue_ms=_ms(began - arrival),
        compute_ms=_ms(computed),
        else_ms=_ms(first - began - computed),
    )


def _happened(mark: Mark, start: int, end: int) -> str:
    if mark.move is not None:
        stood = mark.at + sum(mark.move.phases[: Phase.SWITCHING])
        here = mark.move.down_ns and stood < end and stood + mark.move.down_ns > start
        down = f", standing still for {mark.move.down_ns / MS:.1f} ms" if here else ""
        failed = f", which came to nothing ({mark.move.reason})" if mark.move.reason else ""
        return f"move from {mark.instance} to {mark.move.to} ({mark.why}){failed}{down}"
    if mark.what == "chunk":
        return f"{mark.tokens} tokens computed on {mark.instance}"
    return " ".join(
        [
            mark.what,
            *([f"on {mark.instance}"] if mark.instance is not None else []),
            *([f"({mark.why})"] if mark.why else []),
        ]
    )


def _events(story: Story) -> list[Event]:
    """In order of time."""
    arrival = story.spec.arrival
    found = [_event(mark, arrival) for mark in story.marks]
    if story.times:
        found.append(Event(at_ms=_ms(story.times[0] - arrival), what="first token"))
    return sorted(found, key=lambda event: event.at_ms)


def _event(mark: Mark, arrival: int) -> Event:
    event = Event(
        at_ms=_ms(mark.at - arrival),
        what=mark.what,
        until_ms=_ms(mark.until - arrival) if mark.until > mark.at else None,
        instance=mark.instance,
        why=mark.why,
        tokens=mark.tokens,
    )
    move = mark.move
    if move is None:
        return event
    return msgspec.structs.replace(
        event,
        to=move.to,
        failed=move.reason,
        copied=move.copied,
        computed_again=move.again,
        phases_ms={name: _ms(ns) for name, ns in zip(_PHASES, move.phases, strict=True) if ns},
        down_ms=_ms(move.down_ns),
    )


def _ms(ns: float) -> float:
    return round(ns / MS, 3)


def in_words(told: Told) -> list[str]:
    """Lines for a terminal."""
    lines = [f"request {told.job}: {told.outcome}, {told.prompt_tokens} prompt and {told.output_tokens} output tokens"]
    lines += [_line(event) for event in told.events]
    if (ttft := told.ttft) is not None:
        parts = f"queued {ttft.queue_ms:.1f}, chunks {ttft.compute_ms:.1f}, else {ttft.else_ms:.1f}"
        lines.append(f"TTFT {ttft.ms:.1f} ms{_promise(ttft.promised_ms, ttft.late)}: {parts}")
    if (each := told.tpot) is not None:
        lines.append(
            f"TPOT {each.ms:.1f} ms{_promise(each.promised_ms, each.late)}, median gap {each.median_ms:.1f} ms"
        )
        lines += [f"  {gap.ms:.1f} ms before token {gap.token}: {'; '.join(gap.happened) or '-'}" for gap in each.gaps]
    return lines


def _line(event: Event) -> str:
    said = f"{event.at_ms:12.3f} ms  {event.what}"
    if event.tokens:
        said += f" of {event.tokens} tokens"
    if event.instance is not None:
        said += f" from {event.instance} to {event.to}" if event.to is not None else f" on {event.instance}"
    if event.until_ms is not None:
        said += f" for {event.until_ms - event.at_ms:.3f} ms"
    if event.why:
        said += f" ({event.why})"
    if event.to is not None:
        phases = ", ".join(f"{name} {ms:.1f}" for name, ms in event.phases_ms.items())
        said += f": {event.copied} positions copied, {event.computed_again} computed again; {phases} ms"
        said += f"; came to nothing: {event.failed}" if event.failed else f"; standing still {event.down_ms:.1f} ms"
    return said


def _promise(ms: float | None, late: bool) -> str:
    return "" if ms is None else f" ({'late: ' if late else ''}{ms:g} promised)"
