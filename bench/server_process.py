"""`penstock serve` as a process of its own, for what loads it and breaks it: start, look inside, end. No requests.

What it looks at is what an operator sees: the lines on stdout, /metrics, and the process table.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

#: A loaded machine is slow: conditions are waited for, and this is the limit.
PATIENCE_S = 90.0


class ServerProcess:
    """A server on a free port. As a context manager it waits until the server is ready, and ends it."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "penstock.cli.main", "serve", "--port", "0", *flags]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {})
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        #: What it has printed so far.
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        wait_until(lambda: self.said("ready in") or self.process.poll() is not None, "the server is ready")
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.output}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Until it has ended and all it said is here; its exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        found = re.search(r"listening on ([\d.]+:\d+)", self.output)
        assert found is not None, f"the server does not listen:\n{self.output}"
        return f"http://{found[1]}"

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def front(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def family(self) -> list[psutil.Process]:
        """The server and all its descendants."""
        front = self.front()
        return [front, *front.children(recursive=True)]

    def engine(self) -> psutil.Process | None:
        """The engine's process, where there is one at the moment."""
        workers = [p for p in self.family()[1:] if alive(p) and "penstock.drivers.worker" in p.cmdline()]
        return workers[0] if workers else None

    def kill_engine(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Kill or stop the engine; its process id."""
        engine = self.engine()
        assert engine is not None, "there is no engine"
        engine.send_signal(how)
        return engine.pid

    def metrics(self) -> dict[str, float]:
        """Values of /metrics by name, with those of all labels added up."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as reply:
            text: str = reply.read().decode()
        values: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = re.split(r"(?:\{.*\})? ", line, maxsplit=1)
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def idle(self) -> bool:
        """No answer runs or waits, and every KV page is free or evictable."""
        now = self.metrics()
        return not any(now[f"penstock_{name}"] for name in IDLE)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))


IDLE = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


@dataclass
class Footprint:
    """What a server holds at rest; descriptors, threads and tasks are the front's."""

    processes: int
    fds: int
    threads: int
    tasks: int
    front_bytes: int
    engine_bytes: int


def footprint(server: ServerProcess) -> Footprint:
    front, engine = server.front(), server.engine()
    return Footprint(
        processes=len(server.family()),
        fds=front.num_fds(),
        threads=front.num_threads(),
        tasks=int(server.metrics()["penstock_event_loop_tasks"]),
        front_bytes=front.memory_info().rss,
        engine_bytes=engine.memory_info().rss if engine else 0,
    )


def growth(first: Footprint, last: Footprint) -> list[str]:
    """What a server holds more of than before, memory apart. A connection may just be closing: hence the slack."""
    slack = {"processes": 0, "fds": 2, "threads": 0, "tasks": 0}
    grown = [(name, getattr(first, name), getattr(last, name)) for name in slack]
    return [f"{name} grew from {before} to {after}" for name, before, after in grown if after > before + slack[name]]


def alive(process: psutil.Process) -> bool:
    """Whether the process is there, and not just not yet reaped."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> float:
    """Seconds until the condition held; AssertionError if it did not in time."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began
