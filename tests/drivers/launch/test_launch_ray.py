"""Real workers on a Ray cluster that this test starts here: kills, a node that goes, a home that goes, nothing left."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psutil
import pytest
from meeting import Meeting

from penstock.drivers.launch.base import LOST, LaunchError
from penstock.drivers.launch.named import open_launcher

pytest.importorskip("ray", reason="the Ray launcher needs Ray: pip install 'penstock[ray]'")

from ray.cluster_utils import Cluster

from penstock.drivers.launch import ray as launch_ray
from penstock.drivers.launch.ray import Placement, RayLauncher, RayWorker, Seat, choose

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

STORE_BYTES = 80 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node with two CPUs and, so it says, a GPU."""
    # A short path, since sockets lie below it.
    folder = tempfile.mkdtemp(prefix="ray-")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": STORE_BYTES})
        yield cluster
        cluster.shutdown()
    # The cluster's own would stay for the tests that follow.
    signal.signal(signal.SIGTERM, handler)
    shutil.rmtree(folder)


@pytest.fixture
async def launcher(cluster: Cluster) -> AsyncIterator[RayLauncher]:
    """Afterwards none of what it started is left."""
    launcher = await RayLauncher.connect(cluster.address)
    yield launcher
    workers = [seat.worker for seat in launcher._seats if seat.worker is not None]
    await launcher.close()
    await launcher.close()
    await until(lambda: not any(psutil.pid_exists(worker.pid) for worker in workers))
    await until(lambda: not keepers())


@pytest.fixture
def meeting(launcher: RayLauncher) -> Iterator[Meeting]:
    """At the address where nodes reach this host."""
    meeting = Meeting(launcher.address)
    yield meeting
    meeting.close()


def keepers() -> list[psutil.Process]:
    """Actors on the nodes of the test."""
    return [p for p in psutil.Process().children(recursive=True) if "Keeper" in p.name()]


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.1)


async def launch_all(launcher: RayLauncher, meeting: Meeting, count: int) -> list[RayWorker]:
    """So many workers, up and connected."""
    workers = await asyncio.gather(*(launcher.launch(meeting.config(n)) for n in range(count)))
    assert sorted(await meeting.hellos(count)) == list(range(count))
    return workers


async def test_workers_on_two_nodes(cluster: Cluster, launcher: RayLauncher, meeting: Meeting) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    workers = await launch_all(launcher, meeting, 4)
    there = [worker for worker in workers if worker.node == node.node_id]
    here = [worker for worker in workers if worker.node != node.node_id]
    assert len(there) == len(here) == 2
    assert {worker.address for worker in workers} == {launcher.address}

    # One that is stopped is killed; its seat is free for another.
    os.kill(here[0].pid, signal.SIGSTOP)
    here[0].kill()
    assert await here[0].wait() == await here[0].wait() == -signal.SIGKILL
    here[0] = await launcher.launch(meeting.config(4))
    await meeting.hellos(1)
    assert here[0].node == here[1].node

    # The node goes without a word. A keeper may just see its worker end before it ends itself.
    waiting = [asyncio.create_task(worker.wait()) for worker in there]
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    assert set(await asyncio.gather(*waiting)) <= {LOST, -signal.SIGKILL}
    assert all(worker.running and psutil.pid_exists(worker.pid) for worker in here)


async def test_what_a_worker_says_and_sees(
    cluster: Cluster, launcher: RayLauncher, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = await launcher.launch(b"{}", devices=["any"])
    assert psutil.Process(worker.pid).environ()["CUDA_VISIBLE_DEVICES"] == "0"
    assert await worker.wait() == 1
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "missing required field" in said

    await until(heard)


async def test_a_keeper_that_does_not_answer_is_given_up(
    launcher: RayLauncher, meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_ray, "KILL_S", 0.5)
    [worker] = await launch_all(launcher, meeting, 1)
    assert psutil.Process(worker.pid).environ()["CUDA_VISIBLE_DEVICES"] == ""
    [keeper] = keepers()
    keeper.suspend()
    worker.kill()
    assert await worker.wait() == LOST


async def test_a_cluster_without_room_is_said(launcher: RayLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ray, "PLACE_S", 0.1)
    with pytest.raises(LaunchError, match="no node has had 1 CPU and 5 GPU free"):
        await launcher.launch(b"{}", devices=["any"] * 5)


HOME = """
import asyncio, sys
from penstock.drivers.launch.ray import RayLauncher

async def main():
    worker = await (await RayLauncher.connect(sys.argv[1])).launch(sys.argv[2].encode())
    await worker.wait()

asyncio.run(main())
"""


async def test_a_worker_ends_with_its_home(cluster: Cluster, meeting: Meeting) -> None:
    command = (sys.executable, "-c", HOME, cluster.address, meeting.config(0).decode())
    home = await asyncio.create_subprocess_exec(*command)
    try:
        await meeting.hellos(1)
        [keeper] = keepers()
        [worker] = keeper.children()
    finally:
        home.kill()
        await home.wait()
    await until(lambda: not worker.is_running())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001", "nowhere"])
async def test_a_cluster_that_is_not_there_is_said(address: str) -> None:
    with pytest.raises(LaunchError, match="ray start --head"):
        await open_launcher("ray", ray_address=address)


async def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "penstock.drivers.launch.ray")
    missing: dict[str, Any] = {name: None for name in sys.modules if name == "ray" or name.startswith("ray.")}
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LaunchError, match=r"pip install 'penstock\[ray\]'"):
        await open_launcher("ray")


def test_where_the_fewest_or_the_most_are() -> None:
    def node(name: str, cpus: float, alive: bool = True, **more: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus, **more}}

    nodes = [node("gone", 9, alive=False), node("a", 2), node("b", 3), node("c", 2, GPU=1)]
    orders: dict[Placement, list[str]] = {"spread": ["a", "b", "c"] * 2 + ["b"], "pack": [*"aabbbcc"]}
    for placement, order in orders.items():
        seats: list[Seat] = []
        for _ in range(8):
            seats.append(Seat(choose(nodes, seats, {"CPU": 1}, placement), {"CPU": 1}))
        assert [seat.node for seat in seats] == [*order, None]
    assert choose(nodes, [], {"CPU": 1, "GPU": 1}, "spread") == "c"
    assert choose(nodes, [Seat("c", {"GPU": 1})], {"CPU": 1, "GPU": 1}, "spread") is None
