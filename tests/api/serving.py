"""A server as the cli runs it: uvicorn in an event loop, here in a thread of its own, on a real socket."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from fake_home import FakeHome
from starlette.applications import Starlette

from penstock.api.app import create_app
from penstock.api.config import FrontConfig
from penstock.api.server import serve


@contextmanager
def running(home: FakeHome, config: FrontConfig) -> Iterator[tuple[str, Starlette]]:
    """(base url, app) of a server that runs in a thread, until the block ends."""
    app = create_app(home, config)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready = threading.Event()
    ports: list[int] = []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    def main() -> None:
        asyncio.set_event_loop(loop)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve(app, "127.0.0.1", 0, stop=stop, on_ready=on_ready, drain_s=1))

    thread = threading.Thread(target=main)
    thread.start()
    assert ready.wait(10), "the server did not start"
    try:
        yield f"http://127.0.0.1:{ports[0]}", app
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 10 s")
