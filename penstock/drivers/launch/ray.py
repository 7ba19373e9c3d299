"""Workers on the nodes of a Ray cluster. The only file that imports Ray; knows nothing of what workers do.

Each worker is the same process as on one host. An actor on its node, the keeper, starts it as a child, so that nothing
of Ray is in its way, and tells how it ended. The keeper ends with this process and with its node, and the worker with
the keeper. One placement group of one bundle holds the whole of an instance, so its ranks never lie on two nodes.
"""

import asyncio
import contextlib
import os
import platform
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import penstock
from penstock.drivers.launch.base import LOST, LaunchError
from penstock.drivers.launch.local import COMMAND, environment

Placement = Literal["spread", "pack"]

#: A keeper that was told to kill its worker and says nothing for so long is given up.
KILL_S = 5.0
#: A cluster that does not answer for so long is not there.
KNOCK_S = 5.0
#: A cluster without room may get some (a job ends, a node joins) for so long.
PLACE_S = 60.0
#: A node may take so long to unpack this package and to start a keeper.
START_S = 120.0


class Where(NamedTuple):
    """Where a worker is: see `base.Launched`, and Ray's name of the node."""

    pid: int
    host: str
    address: str
    node: str


class Keeper:
    """The actor beside a worker, on its node."""

    def __init__(self, config: bytes, gpus: int) -> None:
        env = environment()
        # Ray set it to what it counts the keeper at. The worker chooses its threads itself, as on one host.
        env.pop("OMP_NUM_THREADS", None)
        if not gpus:
            env["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, start_new_session=True, env=env)
        assert self._process.stdin is not None
        self._process.stdin.write(config + b"\n")
        self._process.stdin.flush()

    def where(self) -> Where:
        """Where the worker is."""
        node = ray.get_runtime_context().get_node_id()
        return Where(self._process.pid, platform.node(), get_node_ip_address(), node)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait()

    def kill(self) -> None:
        """As in `base.Launched`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class RayWorker:
    """A worker on some node; see `base.Launched`."""

    def __init__(self, keeper: Any, group: PlacementGroup, where: Where) -> None:
        self.pid, self.host, self.address, self.node = where
        self._keeper = keeper
        self._group = group
        self._code = asyncio.create_task(self._watch())

    @property
    def running(self) -> bool:
        """Whether it has not been seen to end."""
        return not self._code.done()

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def kill(self) -> None:
        if self.running:
            with contextlib.suppress(RayError):
                self._keeper.kill.remote()
            asyncio.get_running_loop().call_later(KILL_S, self._code.cancel)

    async def _watch(self) -> int:
        try:
            return int(await self._keeper.wait.remote())
        except (RayError, asyncio.CancelledError):
            return LOST
        finally:
            await _release(self._group, self._keeper)


class Seat:
    """Room for one instance on a node, from before it is placed until it has ended."""

    def __init__(self, node: str | None, bundle: dict[str, float]) -> None:
        #: Where it is, or until that is known where it should be. None: Ray chooses.
        self.node = node
        self.bundle = bundle
        self.worker: RayWorker | None = None

    @property
    def taken(self) -> bool:
        """Whether it is not over."""
        return self.worker is None or self.worker.running


class RayLauncher:
    """See `base.Launcher`. Made by `connect`. Counts CPUs and GPUs: an instance starts where both are free."""

    name = "ray"

    def __init__(self, placement: Placement) -> None:
        self.address: str = get_node_ip_address()
        self._placement = placement
        self._seats: list[Seat] = []
        self._closed = False

    @classmethod
    async def connect(cls, address: str = "", placement: Placement = "spread") -> "RayLauncher":
        """Join a running cluster at host:port; if that is not said, the one of RAY_ADDRESS or of this host. `placement`
        says whether instances go where the fewest or where the most of them are. Raises LaunchError."""
        # In a thread of its own: there Ray leaves the handler of SIGTERM as it is.
        await asyncio.to_thread(_connect, address or os.environ.get("RAY_ADDRESS") or "auto")
        return cls(placement)

    async def launch(self, config: bytes, *, devices: Sequence[str] = (), cpus: float = 1.0) -> RayWorker:
        if self._closed:
            raise LaunchError("this launcher is closed: connect another")
        bundle = {name: count for name, count in (("CPU", cpus), ("GPU", len(devices))) if count}
        nodes = await asyncio.to_thread(ray.nodes)
        taken = [seat for seat in self._seats if seat.taken]
        seat = Seat(choose(nodes, taken, bundle, self._placement), bundle)
        self._seats = [*taken, seat]
        try:
            seat.worker = await _start(config, seat)
        except (RayError, ValueError) as error:
            raise LaunchError(f"Ray starts no worker: {error}") from error
        finally:
            if seat.worker is None:
                self._seats.remove(seat)
        seat.node = seat.worker.node
        return seat.worker

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        workers = [seat.worker for seat in self._seats if seat.worker is not None]
        for worker in workers:
            worker.kill()
        await asyncio.gather(*(worker.wait() for worker in workers))
        await asyncio.to_thread(ray.shutdown)


def choose(
    nodes: list[dict[str, Any]], seats: list[Seat], bundle: dict[str, float], placement: Placement
) -> str | None:
    """The node (as `ray.nodes` tells of them) where the fewest or the most seats are, of those with room for the bundle
    beside them. None: there is no room."""

    def room(node: dict[str, Any]) -> bool:
        bundles = [bundle, *(seat.bundle for seat in seats if seat.node == node["NodeID"])]
        return all(sum(b.get(name, 0) for b in bundles) <= node["Resources"].get(name, 0) for name in bundle)

    names: list[str] = [node["NodeID"] for node in nodes if node["Alive"] and room(node)]
    best = min if placement == "spread" else max
    return best(names, key=lambda name: sum(seat.node == name for seat in seats), default=None)


def _connect(address: str) -> None:
    package = str(Path(penstock.__file__).parent)
    try:
        _knock(address)
        # Every node gets this very package; what it needs from others must be installed there.
        ray.init(address, log_to_driver=True, logging_level="error", runtime_env={"py_modules": [package]})
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise LaunchError(
            f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or name another by host:port"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray would go on trying. Raises ValueError if that is no address."""
    host, colon, port = address.rpartition(":")
    if address != "auto":
        if not colon or "/" in host or not port.isdecimal():
            raise ValueError("that is not host:port")
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


async def _start(config: bytes, seat: Seat) -> RayWorker:
    """Raises LaunchError, RayError, and ValueError for a bundle that Ray does not take."""
    group = await asyncio.to_thread(
        placement_group, [seat.bundle], strategy="STRICT_PACK", _soft_target_node_id=seat.node
    )
    keeper = None
    try:
        await _placed(group, seat.bundle)
        cpus, gpus = seat.bundle.get("CPU", 0), int(seat.bundle.get("GPU", 0))
        keeper = (
            ray.remote(Keeper)
            .options(
                num_cpus=cpus,
                num_gpus=gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
                # One call waits for the worker's end; others must get through beside it.
                max_concurrency=4,
            )
            .remote(config, gpus)
        )
        return RayWorker(keeper, group, await _whereabouts(keeper))
    except BaseException:
        await _release(group, keeper)
        raise


async def _placed(group: PlacementGroup, bundle: dict[str, float]) -> None:
    """Waits until there is a node for it."""
    try:
        async with asyncio.timeout(PLACE_S):
            while not await asyncio.to_thread(group.wait, 1):
                pass
    except TimeoutError:
        need = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise LaunchError(
            f"no node has had {need} free for {PLACE_S:g} s: end other jobs, add a node, or ask for less"
        ) from None


async def _whereabouts(keeper: Any) -> Where:
    """Waits until the keeper has started the worker."""
    try:
        async with asyncio.timeout(START_S):
            return Where(*await keeper.where.remote())
    except TimeoutError:
        raise LaunchError(f"the node has started no worker for {START_S:g} s: see Ray's logs there") from None


async def _release(group: PlacementGroup, keeper: Any) -> None:
    """End the keeper, and its worker with it; give back what was set aside for them. A cluster that does not answer is
    not waited for: it does the same when it notices that this process is gone."""

    def release() -> None:
        with contextlib.suppress(RayError):
            if keeper is not None:
                ray.kill(keeper)
            remove_placement_group(group)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_S):
            await asyncio.to_thread(release)
