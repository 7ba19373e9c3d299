"""Real servers for the tests beside this: one with a tiny model, shared by all, and null ones as each test needs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from server_process import ServerProcess
from tiny_llama import build


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer and a chat template."""
    return build(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[ServerProcess]:
    """Serves the tiny Llama as `tiny`."""
    with ServerProcess(str(folder), "--served-model-name", "tiny", "--quiet", "--threads", "1") as server:
        yield server
