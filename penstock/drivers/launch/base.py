"""What starts worker processes, on this host or elsewhere. Knows nothing of what a worker is told or says: its
configuration is bytes, and a worker that is up speaks for itself, over its own socket.
"""

from collections.abc import Sequence
from typing import Protocol

#: Exit code of a worker whose host, or whose keeper there, is gone: nobody saw it end. (No process can have it.)
LOST = 256


class LaunchError(Exception):
    """A worker cannot be started; the text says what to change. Trying again helps only where it says so."""


class Launched(Protocol):
    """A worker process that was started; it may not be ready for long, or ever."""

    @property
    def pid(self) -> int:
        """Process id, on its host."""

    @property
    def host(self) -> str:
        """Name of the host it runs on. Workers of one name share memory and devices."""

    @property
    def address(self) -> str:
        """Name or IP of that host, as other workers and homes reach it over tcp."""

    async def wait(self) -> int:
        """Its exit code once it has ended: below 0 the signal that ended it, LOST if nobody saw it end. May be awaited
        by many, again and again, and be cancelled."""

    def kill(self) -> None:
        """SIGKILL to the worker and to the processes that it started, even if they are stopped. Returns at once and
        never raises; `wait` tells when it is done."""


class Launcher(Protocol):
    """Starts workers. Those that still run when it is closed, or when this process ends in whatever way, are killed."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def address(self) -> str:
        """Name or IP of this host, as workers reach it over tcp; 127.0.0.1 if all of them are on it."""

    async def launch(self, config: bytes, *, devices: Sequence[str] = (), cpus: float = 1.0) -> Launched:
        """Start a worker, which finds `config` as the first line of its stdin (so it has no line break of its own).

        `devices` are the GPUs of the instance, as in CUDA_VISIBLE_DEVICES; a launcher that chooses the host chooses
        them as well, and takes only their number from here. `cpus` are set aside for it where there is someone to
        count them. Raises LaunchError.
        """

    async def close(self) -> None:
        """Kill what still runs, and return when nothing is left. May be called twice."""
