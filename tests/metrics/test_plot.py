"""The picture gets drawn from any run, and its absence is explained."""

import builtins
import struct
from pathlib import Path
from typing import Any

import pytest
from test_summary import SLO, record

from penstock.core.slo import Slo
from penstock.metrics.plot import plot


@pytest.mark.parametrize("slo", [SLO, Slo(), Slo.parse("e2e=1s")])
def test_png(tmp_path: Path, slo: Slo) -> None:
    records = [record(i, 10 * i, [10 * i + 20, 10 * i + 22 + 3 * i]) for i in range(9)]
    records.append(record(9, 5, outcome="failed"))
    plot(records, slo, str(tmp_path / "run.png"))
    data = (tmp_path / "run.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 500


def test_nothing_answered(tmp_path: Path) -> None:
    plot([record(0, 0, outcome="failed")], SLO, str(tmp_path / "run.png"))
    assert (tmp_path / "run.png").exists()


def test_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"penstock\[plot\]"):
        plot([record(0, 0, [1])], SLO, "unused.png")
