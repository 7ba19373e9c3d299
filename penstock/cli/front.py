"""One of several HTTP processes of a server: `python -m penstock.cli.front`, configuration on stdin. No verb."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from penstock.api.app import create_app
from penstock.api.config import FrontConfig
from penstock.api.server import serve
from penstock.drivers.branch import Branch, BranchConfig
from penstock.drivers.lifeline import hold_on


class FrontProcessConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the process is told."""

    branch: BranchConfig
    front: FrontConfig
    #: Descriptor of the listening socket, which all such processes share.
    listener: int
    shutdown_timeout_s: float

    def encode(self) -> bytes:
        """As `main` reads it."""
        return msgspec.json.encode(self, enc_hook=str)


def main() -> None:
    """Entry point of the process."""
    config = hold_on(FrontProcessConfig, _path)
    uvloop.run(_serve(config))


def _path(kind: type, value: Any) -> Any:
    return kind(value) if issubclass(kind, Path) else value


async def _serve(config: FrontProcessConfig) -> None:
    """Until SIGTERM, which leaves what runs its time."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    home = Branch(config.branch)
    app = create_app(home, config.front)
    await home.start()
    listener = socket.socket(fileno=config.listener)
    closing = asyncio.Event()
    serving = asyncio.create_task(serve(app, listener=listener, stop=closing, drain_s=config.shutdown_timeout_s + 5))
    await asyncio.wait([serving, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    await home.drain(config.shutdown_timeout_s)
    closing.set()
    await home.stop()
    await serving


if __name__ == "__main__":
    main()
