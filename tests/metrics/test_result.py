"""A run on disk comes back as it was, and can be judged again."""

from pathlib import Path

import pytest
from test_summary import SLO, record

from penstock.core.slo import Slo
from penstock.metrics import result
from penstock.metrics.result import Result
from penstock.metrics.summary import Dist, summarize


def saved(tmp_path: Path) -> tuple[Result, Path]:
    records = [record(i, 10 * i, [10 * i + 20, 10 * i + 25], counts=[1, 3]) for i in range(4)]
    records.append(record(4, 0, outcome="rejected", error="busy", status=429, slo=Slo.parse("e2e=1s")))
    client = {"send": Dist.of([1e6, 2e6]), "loop": None}
    made = Result(run={"model": "m", "seed": 3}, summary=summarize(records, SLO), client=client, records=records)
    path = tmp_path / "deep" / "run.json"
    result.save(made, path)
    return made, path


def test_comes_back(tmp_path: Path) -> None:
    made, path = saved(tmp_path)
    assert result.load(path) == made


def test_judged_again(tmp_path: Path) -> None:
    made, path = saved(tmp_path)
    before = made.summary.goodput
    after = summarize(result.load(path).records, Slo.parse("ttft=19ms")).goodput
    assert before is not None
    assert after is not None
    assert (before.good, after.good) == (4, 0)


@pytest.mark.parametrize(
    ("text", "says"), [("{}", "not the result"), ("nonsense", "not the result"), ('"version":1', '"version":9')]
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    _, path = saved(tmp_path)
    if text.startswith('"version"'):
        path.write_text(path.read_text().replace(text, says))
        says = "version 9"
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=says):
        result.load(path)
