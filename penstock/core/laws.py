"""What must always hold. Each law has its number in docs/invariants.md; each raises AssertionError saying what broke.

`check` is cheap enough for every event of a test; a live worker calls it when it goes idle.
"""

from collections.abc import Iterable

from penstock.core.instance import ENDS, Instance
from penstock.core.job import Job
from penstock.core.prefix import Node, Prefixes


def check(instance: Instance) -> None:
    """All laws of one instance, at any moment between two events."""
    _jobs_conserved(instance)
    _pages_conserved(instance)
    _counters_ordered(instance)
    _in_flight_consistent(instance)
    _work_conserved(instance)
    if not instance.jobs:
        _idle_is_empty(instance)


def _jobs_conserved(instance: Instance) -> None:
    counts = instance.counts
    ended = sum(counts[k] for k in ENDS)
    here = len(instance.jobs) + sum(move.granted is not None for move in instance.moves.incoming.values())
    assert counts["seen"] == here + ended, f"law 1: {counts['seen']} jobs came, {here} are here and {ended} ended"
    split = len(instance.running) + len(instance.waiting) + len(instance.moves.still)
    here = len(instance.jobs)
    assert here == split, f"law 1: {here} jobs are here, but {split} run, wait or stand still"


def _pages_conserved(instance: Instance) -> None:
    pages = instance.pages
    holders = [*instance.running.values(), *instance.moves.holders()]
    own = sum(pages.own(job) for job in holders)
    shared = pages.prefixes.blocks * pages.block_pages
    total = pages.free + own + shared
    assert total == pages.pages, f"law 2: {pages.free} free + {own} own + {shared} shared pages are not {pages.pages}"
    assert pages.free >= 0, f"law 2: {pages.free} free pages"
    _tree_is_sound(pages.prefixes, holders)
    host = instance.host
    stowed = sum(host.need(job.stowed) for job in instance.jobs.values())
    assert host.free + stowed == host.pages, f"law 2: {host.free} free + {stowed} used host pages are not {host.pages}"
    waiting = [job.id for job in instance.waiting.jobs if job.room or job.shared or job.planned]
    assert not waiting, f"law 2: waiting jobs {waiting} hold pages"


def _tree_is_sound(tree: Prefixes, running: Iterable[Job]) -> None:
    users: dict[Node, int] = {}
    for job in running:
        node, path = job.node, list[int]()
        while node is not None and node.parent is not None:
            users[node] = users.get(node, 0) + 1
            path[:0] = node.keys
            node = node.parent
        assert path == job.keys[: job.shared], f"law 2: {job} uses other blocks than it says"
    nodes = list(tree.nodes())
    assert {n: n.users for n in nodes if n.users} == users, "law 2: users of shared blocks are miscounted"
    assert sum(len(n.keys) for n in nodes) == tree.blocks, "law 2: shared blocks are miscounted"
    assert sum(len(n.keys) for n in tree.idle) == tree.idle_blocks, "law 2: idle blocks are miscounted"
    assert {n for n in nodes if not n.users} == set(tree.idle), "law 2: idle blocks are not those without users"
    place = {node: at for at, node in enumerate(tree.idle)}
    early = [n for n in tree.idle for child in n.children.values() if place.get(child, len(place)) > place[n]]
    assert not early, "law 2: a shared block would be evicted before one that stands on it"


def _counters_ordered(instance: Instance) -> None:
    for job in instance.jobs.values():
        ordered = 0 <= job.done <= job.planned <= job.total and job.planned <= max(job.room, 0) and job.known > 0
        assert ordered, f"law 3: counters out of order: {job}, room {job.room}"
        assert job.done < job.known, f"law 3: {job} has executed what is not known"


def _in_flight_consistent(instance: Instance) -> None:
    config = instance.config
    assert len(instance.steps) <= max(config.depth, config.stages), "law 4: more steps in flight than depth"
    in_steps = [job.id for step in instance.steps.values() for job in step.jobs]
    assert config.stages == 1 or len(in_steps) == len(set(in_steps)), "law 4: two stages have a job in common"
    in_flight: dict[int, int] = {}
    for step in instance.steps.values():
        for job, piece in zip(step.jobs, step.slices, strict=True):
            assert piece.start == job.done + in_flight.get(job.id, 0), f"law 4: {piece} does not follow {job}"
            in_flight[job.id] = in_flight.get(job.id, 0) + piece.count
    for job in instance.jobs.values():
        planned = job.done + in_flight.get(job.id, 0)
        assert planned == job.planned, f"law 4: {job} has {in_flight.get(job.id, 0)} positions in flight"


def _work_conserved(instance: Instance) -> None:
    could = len(instance.jobs) > len(instance.moves.still) and not instance.moves.active
    idle = could and not instance.steps and not instance.reason
    assert not idle, f"law 5: nothing runs though {len(instance.jobs)} jobs could, and the policy gives no reason"


def _idle_is_empty(instance: Instance) -> None:
    assert instance.moves.active or instance.pages.available == instance.pages.pages, (
        "law 6: no job is here, but pages are neither free nor evictable"
    )
    assert not instance.settling, "law 6: no job is here, but some still settle"
