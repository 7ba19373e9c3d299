"""Which request follows which: a turn of a conversation may wait for the answer to the turn before it."""

from collections.abc import Iterator, Sequence

from penstock.workload.request import Request


def in_order(requests: Sequence[Request]) -> Iterator[tuple[int, int | None]]:
    """Indices in the order in which a client takes requests up, each with the index of the one whose end it waits for.

    None: it comes at its `arrival_s`; so does a turn with a `think_s` whose session has no turn before it here. One
    that waits comes right after the one it waits for, to be at hand however soon that is answered.
    """
    last: dict[str, int] = {}
    before: list[int | None] = []
    follower: dict[int, int] = {}
    for index, request in enumerate(requests):
        previous = last.get(request.session) if request.session and request.think_s is not None else None
        before.append(previous)
        if previous is not None:
            follower[previous] = index
        if request.session:
            last[request.session] = index
    for index, previous in enumerate(before):
        if previous is None:
            turn: int | None = index
            while turn is not None:
                yield turn, before[turn]
                turn = follower.get(turn)
