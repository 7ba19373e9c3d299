"""Workers as processes on this host."""

import asyncio
import contextlib
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import penstock
from penstock.drivers.launch.base import LaunchError

#: A worker, whoever starts it.
COMMAND = (sys.executable, "-m", "penstock.drivers.worker")


def environment() -> dict[str, str]:
    """This process's, changed so that the worker imports this very package, wherever it was imported from."""
    root = str(Path(penstock.__file__).parents[1])
    paths = filter(None, (root, os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class LocalWorker:
    """A worker on this host; see `base.Launched`. While this object lives, so does the pipe to the worker's stdin,
    by whose end the worker notices that its home is gone."""

    address = "127.0.0.1"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.host = platform.node()
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not been seen to end."""
        return self._process.returncode is None

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        # It leads a session of its own, so this reaches what it started too.
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class LocalLauncher:
    """See `base.Launcher`. Counts no CPUs: several workers may share them, and a device as well."""

    name = "local"
    address = LocalWorker.address

    def __init__(self) -> None:
        self._workers: list[LocalWorker] = []

    async def launch(self, config: bytes, *, devices: Sequence[str] = (), cpus: float = 1.0) -> LocalWorker:
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        try:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, stdin=asyncio.subprocess.PIPE, start_new_session=True, env=environment() | visible
            )
        except OSError as error:
            raise LaunchError(f"this host starts no further process ({error}): end some, or raise its limits") from None
        assert process.stdin is not None
        process.stdin.write(config + b"\n")
        worker = LocalWorker(process)
        self._workers = [*filter(lambda other: other.running, self._workers), worker]
        return worker

    async def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        await asyncio.gather(*(worker.wait() for worker in self._workers))
