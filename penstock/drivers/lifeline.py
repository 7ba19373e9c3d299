"""How a process that another one starts is told what to do, and ends with whoever started it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def hold_on(config: type[T], dec_hook: Callable[[type, Any], Any] | None = None) -> T:
    """Read the configuration, one line of JSON on stdin; from now on the process ends when stdin closes."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found = msgspec.json.decode(sys.stdin.buffer.readline(), type=config, dec_hook=dec_hook)
    threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()
    return found


def _end_with_stdin() -> None:
    """Whoever started this process holds the other end of stdin; when that closes, they are gone."""
    while os.read(0, 64):
        pass
    os._exit(0)


def die_with_parent() -> None:
    """On Linux the kernel can do it, which also ends a process that is stopped or hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
