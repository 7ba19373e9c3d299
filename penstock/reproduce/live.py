"""A cell of a figure on this machine: real servers, the load client, the numbers of what it saw."""

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from penstock.metrics import result
from penstock.reproduce import twin
from penstock.reproduce.figure import Figure
from penstock.reproduce.numbers import Numbers, latencies, of_records
from penstock.reproduce.runs import Cell
from penstock.workload import trace

#: A model and several instances of it are loaded on a machine that may be busy.
_READY_S = 240.0
_PENSTOCK = (sys.executable, "-m", "penstock.cli.main")


class Servers:
    """One server at a time, that of the row that was asked for last; what it prints goes to a folder."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._flags: list[str] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._url = ""

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def measure(self, figure: Figure, cell: Cell, repeat: int) -> Numbers:
        """Raises ValueError where the server does not start, or the client has nothing to report."""
        spec = figure.rows[cell.row]
        if not spec.serve:
            raise ValueError(f"{figure.name}: {cell.row} has no `serve:`, the flags of its live form")
        load = figure.load_of(cell.row, {})
        each = (spec.gpus or 1) if load.per_gpu else 1
        asked = twin.requests(load, cell.rate * each, cell.requests * each, cell.cv, load.seed + repeat)
        self._have(cell.row, spec.serve)
        with tempfile.TemporaryDirectory() as folder:
            requests, saved = Path(folder) / "requests.jsonl", Path(folder) / "result.json"
            trace.save(asked, requests)
            command = (
                *_PENSTOCK, "bench", "serve", "--base-url", self._url, "--dataset-name", "trace", "--dataset-path",
                str(requests), "--ignore-eos", "--save-result", "--result-filename", str(saved), "--disable-tqdm",
                "--seed", str(load.seed + repeat),
            )  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not saved.exists():
                raise ValueError(f"{figure.name}, {cell.name}: the client failed:\n{done.stdout}{done.stderr}")
            records = result.load(saved).records
        found = of_records(records, figure.promise, figure.slo_scales)
        values = found.values | {"gpus": float(each)}
        if load.urgent:
            for prefix, urgent in (("urgent_", True), ("normal_", False)):
                some = [r for r, a in zip(records, asked, strict=True) if (a.priority == -1) == urgent]
                values |= latencies(some, prefix)
        return msgspec.structs.replace(found, values=values)

    def _have(self, row: str, flags: list[str]) -> None:
        if self._server is not None and flags == self._flags:
            return
        self._end()
        path = self._logs / (re.sub(r"[^A-Za-z0-9.+-]+", "_", row) + ".log")
        with path.open("wb") as log:
            self._server = subprocess.Popen((*_PENSTOCK, "serve", "--port", "0", *flags), stdout=log, stderr=log)
        self._flags = flags
        until = time.monotonic() + _READY_S
        while time.monotonic() < until and self._server.poll() is None:
            said = path.read_text("utf-8", "replace")
            if "ready in" in said and (found := re.search(r"listening on ([\d.]+:\d+)", said)):
                self._url = f"http://{found[1]}"
                return
            time.sleep(0.2)
        said = path.read_text("utf-8", "replace")[-2000:]
        raise ValueError(f"the server of {row} did not start within {_READY_S:g} s:\n{said}")

    def _end(self) -> None:
        if self._server is None:
            return
        self._server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.wait(30.0)
        if self._server.poll() is None:
            self._server.kill()
            self._server.wait()
        self._server = None
