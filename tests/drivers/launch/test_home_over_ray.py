"""A home whose instances are on the nodes of a Ray cluster: jobs move between them, one node dies, no token is lost."""

import asyncio
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

pytest.importorskip("ray", reason="the Ray launcher needs Ray: pip install 'penstock[ray]'")

from ray.cluster_utils import Cluster

from penstock.drivers.fleet import FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.launch.ray import RayLauncher
from penstock.drivers.stream import Stream
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

NULL = NullOptions(pages=1024, cost=(5e6, 1e3, 0.0, 1e4, 0.0))
STORE_BYTES = 80_000_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes, with room for two instances on each."""
    # A short path, since sockets lie below it.
    folder = tempfile.mkdtemp(prefix="ray-")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()
    # The cluster's own would stay for the tests that follow.
    signal.signal(signal.SIGTERM, handler)
    shutil.rmtree(folder)


async def check(stream: Stream) -> None:
    tokens = [token async for chunk in stream for token in chunk.tokens]
    assert tokens == [(stream.id * 31 + i * 7) % NULL.vocab for i in range(stream.sampling.max_tokens)]


async def test_a_node_dies(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    launcher = await RayLauncher.connect(cluster.address)
    home = Home(WorkerConfig(engine=NULL, policy="flood"), FleetConfig(roles=("",) * 3), launcher)
    await home.start()
    await home.wait_ready(120)
    draw = random.Random(0)
    streams = [home.submit([1] * draw.randint(1, 100), Sampling(max_tokens=draw.randint(1, 400))) for _ in range(30)]
    checks = [asyncio.create_task(check(stream)) for stream in streams]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(cluster.remove_node, node)
    await asyncio.gather(*checks)
    assert home.fleet.restarts >= 1
    assert sum(stream.epoch - 1 for stream in streams) > len(streams)
    await home.stop()
