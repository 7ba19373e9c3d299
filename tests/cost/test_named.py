"""Naming a cost model: each way leads to it, and every mistake is answered with what there is."""

from pathlib import Path

import msgspec
import pytest

from penstock.core.step import Features
from penstock.cost import models, named
from penstock.cost.linear import Linear
from penstock.cost.published.forms import GroupPhases, PipelinePhases


def test_a_file_is_read(tmp_path: Path) -> None:
    file = models.CostFile(cost=Linear(1.0, 2.0, 3.0, 4.0, 5.0), provenance={"hardware": "h"})
    models.save(file, tmp_path / "cost.json")
    assert named.resolve(str(tmp_path / "cost.json")) == file


def test_five_numbers_are_a_linear_cost() -> None:
    assert named.resolve("5e6, 2e4,30,1e5,12").cost == Linear(5e6, 2e4, 30, 1e5, 12)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5,6", "1,2,x,4,5", "1,2,-3,4,5", "1,2,nan,4,5", ","])
def test_other_numbers_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="5 numbers of ns"):
        named.resolve(text)


@pytest.mark.parametrize("name", named.names())
def test_every_published_name_is_a_cost_that_a_file_holds(name: str, tmp_path: Path) -> None:
    file = named.resolve(name)
    assert file.provenance["name"] == name
    models.save(file, tmp_path / "cost.json")
    assert models.load(tmp_path / "cost.json") == file


def test_every_published_name_has_a_line_of_its_own_and_one_in_the_docs() -> None:
    lines = named.listing()
    assert len(set(lines)) == len(lines) == len(named.names())
    docs = (Path(__file__).parents[2] / "docs" / "cost-published.md").read_text().splitlines()
    assert not [line for line in lines if line not in docs]


def test_parameters_follow_the_name() -> None:
    one, two = (named.resolve(f"distserve/opt-66b/tp4/pp{pp}") for pp in (1, 2))
    assert isinstance(one.cost, PipelinePhases)
    assert one.cost == named.resolve("distserve/opt-66b/tp4").cost
    assert two.cost == msgspec.structs.replace(one.cost, pp=2)
    assert two.provenance["name"] == "distserve/opt-66b/tp4/pp2"
    masters = named.resolve("loongserve/lwm-7b/sp4tp2/masters3").cost
    assert isinstance(masters, GroupPhases)
    assert masters.masters == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distserve/opt-66b/tp4/pp3", r"pp2,4,8"),
        ("distserve/opt-66b/tp4/masters1", r"pp2,4,8"),
        ("loongserve/lwm-7b/sp2tp4/masters3", r"masters2"),
        ("distserve/opt-13b/tp3", r"distserve/opt-13b/tp2"),
        ("llumnix/llama-7", r"llumnix/llama-7b"),
        ("nothing.json", r"distserve, llmstation, llumnix, loongserve, neustream, vllm-0.2; hardware is h200"),
        ("", r"no cost model"),
    ],
)
def test_a_mistake_is_answered_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        named.resolve(text)


def test_hardware_and_a_model_are_composed() -> None:
    step = Features(100, 5050, 0, 0, 1)
    took = [named.resolve(f"h200/llama-3.1-8b{rest}").cost.step_ns(step) for rest in ("", "/tp1", "/tp1/pp1", "/tp2")]
    assert took[0] == took[1] == took[2] > took[3]
    with pytest.raises(ValueError, match=r"llama-3\.1-8b"):
        named.resolve("h200/no-such-model")
