"""Runs an application under uvicorn inside the caller's event loop. Signals and the loop are the caller's."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signal handlers alone: the caller has its own."""
        yield


async def serve(
    app: ASGIApp,
    host: str = "",
    port: int = 0,
    *,
    listener: socket.socket | None = None,
    stop: asyncio.Event,
    on_ready: Callable[[int], None] = lambda port: None,
    drain_s: float = 30.0,
    keep_alive_s: float = 75.0,
) -> None:
    """Serves until `stop` is set; then takes no new connection, and what runs has `drain_s` to end before it is cut.
    A `listener` takes the place of host and port.

    `port` 0 takes any free one; `on_ready` gets the port as soon as connections are accepted. Raises OSError if the
    address cannot be had.
    """
    listener = listener or listen(host, port)
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(keep_alive_s),
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    bound = listener.getsockname()
    server = _Server(config, lambda: on_ready(bound[1]))
    watcher = asyncio.create_task(_watch(server, stop))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        listener.close()


async def _watch(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is an OSError here, with the address in it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=4096)
    except OSError as error:
        # The socket module appends the address to what the system says.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {reason}") from error
