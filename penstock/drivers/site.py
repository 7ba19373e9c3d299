"""What all processes of a deployment have in common: where their mailboxes are, and their secrets."""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from penstock.drivers.launch.base import Launcher
from penstock.drivers.wire import Keys


class Site:
    """On one host, mailboxes are in a folder that keeps others out; between hosts it is the keys that do."""

    def __init__(self, launcher: Launcher) -> None:
        _sweep()
        self.launcher = launcher
        self.keys = None if launcher.name == "local" else Keys.make()
        #: Names of prefix blocks are hashed under it.
        self.secret = secrets.token_bytes(16)
        self._folder = tempfile.TemporaryDirectory(prefix=f"penstock-{os.getpid()}-")

    def bind(self, name: str) -> str:
        """Where a process of this host and of that name listens."""
        return f"ipc://{self._folder.name}/{name}" if self.keys is None else f"tcp://{self.launcher.address}:*"

    def close(self) -> None:
        self._folder.cleanup()


def _sweep() -> None:
    """Remove the folders of sites that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("penstock-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
