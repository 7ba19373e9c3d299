"""Finding, loading and sizing: what is chosen, and what is told when it cannot be."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from penstock.engine.hub import resolve
from penstock.engine.load import Unsupported
from penstock.engine.options import EngineOptions
from penstock.engine.start import start_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("Llama", tmp_path_factory.mktemp("llama"))


def start(folder: Path, **changes: Any) -> Any:
    return start_engine(EngineOptions(model=str(folder), threads=1, **({"backend": "plain", "pages": 64} | changes)))


def test_a_folder_is_found_and_nothing_else_is(folder: Path) -> None:
    assert resolve(str(folder)) == folder
    for name in ("/no/such/folder", "./nothing", "one-word", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            resolve(name)


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"'someone/something'.*give a folder"):
        resolve("someone/something", str(tmp_path))


def test_what_is_in_the_download_dir_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Laid out as the hub's library does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    snapshot = tmp_path / "models--someone--something" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    assert resolve("someone/something", str(tmp_path)) == snapshot
    with pytest.raises(FileNotFoundError):
        resolve("someone/something", str(tmp_path / "elsewhere"))


def test_dummy_weights_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = [next(start(tmp_path, load_format="dummy", seed=s)._model.parameters()) for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(Unsupported, match="could not be loaded"):
        start(tmp_path)


def test_dtypes(folder: Path) -> None:
    assert start(folder).info.dtype == "float32"
    assert start(folder, dtype="float64").info.dtype == "float64"
    with pytest.raises(ValueError, match="'int8': choose auto"):
        start(folder, dtype="int8")


def test_pages_from_memory(folder: Path) -> None:
    page_bytes = 16 * 2 * 2 * 2 * 16 * 4
    assert start(folder, pages=None, kv_bytes=page_bytes * 40 + 5).info.pages == 40
    assert start(folder, pages=None).info.pages == 256 * 256 // 16
    with pytest.raises(ValueError, match=r"1 KV pages of 8192 bytes are too few"):
        start(folder, pages=1)


def test_max_len(folder: Path) -> None:
    assert start(folder).info.max_len == 256
    assert start(folder, max_len=100).info.max_len == 100
    assert start(folder, pages=10).info.max_len == 160
    with pytest.raises(ValueError, match="max_len 300: the model has 256 positions"):
        start(folder, max_len=300)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="must be a multiple of page_tokens"):
        EngineOptions(model="m", page_tokens=16, block_tokens=40)
    with pytest.raises(ValueError, match="load_format 'gguf'"):
        EngineOptions(model="m", load_format="gguf")


def test_an_unreadable_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"config\.json cannot be used"):
        start(tmp_path)


def test_unknown_backend(folder: Path) -> None:
    for name in ("fast", "cuda"):
        with pytest.raises(ValueError, match=f"backend '{name}' on cpu: choose"):
            start(folder, backend=name)


def test_progress_is_told(folder: Path) -> None:
    said: list[str] = []
    start_engine(EngineOptions(model=str(folder), pages=64, threads=1, backend="plain"), said.append)
    assert said[0] == f"loading {folder}"
    assert len(said) > 2
