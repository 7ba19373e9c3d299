"""How kernels are compiled, kept on disk, and run on all threads. Knows no kernel.

Kernels run on the OpenMP threads that torch has already (libgomp's own entry point, found through torch's library):
a second pool of threads would fight the first for the cores.

Each kernel takes the address of a list of int64, of which the first is a ticket counter: every thread draws tickets
until none is left, so a core that is busy elsewhere delays only the ticket it holds.
"""

import ctypes
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numba
import torch

from penstock.engine.cpu.simd import HAS_DOT, LANES

HERE = Path(__file__).parent


def cache_folder() -> str:
    """A folder for compiled kernels that changes with their source: numba itself sees only the file of a kernel."""
    source = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py"))) + repr((LANES, HAS_DOT)).encode()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = Path("penstock") / hashlib.sha256(source).hexdigest()[:16]
    for base in (home, Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"):
        try:
            (base / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(base / name, os.W_OK):
            return str(base / name)
    return tempfile.mkdtemp(prefix="penstock-")


@functools.cache
def _parallel() -> Callable[..., None]:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    run: Callable[..., None] = library.GOMP_parallel
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]  # type: ignore[attr-defined]
    run.restype = None  # type: ignore[attr-defined]
    return run


class Kernel:
    """A compiled function of one address. Calling it runs it with these integers after the ticket counter."""

    def __init__(self, function: Callable[[int], None]) -> None:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = cache_folder()
        try:
            self._compiled = numba.cfunc("void(int64)", cache=True, nopython=True, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = before
        self._address: int = self._compiled.address
        self.__doc__ = function.__doc__

    def __call__(self, *numbers: int, threads: int = 0) -> None:
        args = (ctypes.c_int64 * (len(numbers) + 1))(0, *numbers)
        _parallel()(self._address, args, threads or torch.get_num_threads(), 0)
