"""One way to name any cost model: a file, five numbers, a published name, or hardware with a model.

costs/mine.json                    a cost file (`models`)
5e6,2e4,30,1e5,12                  ns: a step, a prompt token, its context, a decode, its context (`linear`)
distserve/opt-66b/tp4/pp2          published (`published`): `names` lists them, docs/cost-published.md explains them
h200/llama-3.1-8b/tp2/pp2          composed of what the hardware is known to do (`composed`); tp and pp may be left out
"""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import msgspec

from penstock.cost.composed import compose
from penstock.cost.hardware import HARDWARE
from penstock.cost.linear import Linear
from penstock.cost.models import CostFile, load
from penstock.cost.published import distserve, llmstation, llumnix, loongserve, neustream
from penstock.cost.published.entry import Published

_NUMBERS = ("a step", "a prompt token", "its context", "a decode", "its context")


def resolve(text: str) -> CostFile:
    """The cost model that `text` names. Raises ValueError that says what there is, and OSError for a file."""
    if Path(text).is_file():
        return load(text)
    if "," in text:
        return _given(text)
    published = _published()
    if text in published:
        return _file(text, published[text])
    name, _, last = text.rpartition("/")
    if name in published:
        return _with_parameter(name, published[name], last)
    return _composed(text)


def names() -> list[str]:
    """Every published name, without parameters."""
    return list(_published())


def listing() -> list[str]:
    """A line for each published name: the name, in brackets what may follow it, and what it is."""
    lines = {name + _optional(entry): entry.about for name, entry in _published().items()}
    width = max(map(len, lines))
    return [f"{name:{width}}  {about}" for name, about in lines.items()]


@cache
def _published() -> dict[str, Published]:
    found: dict[str, Published] = {}
    for system in (distserve, loongserve, llumnix, neustream, llmstation):
        found |= system.costs()
    return found


def _optional(entry: Published) -> str:
    return "".join(f"[/{key}{','.join(map(str, values))}]" for key, values in entry.parameters.items() if values)


def _file(name: str, entry: Published) -> CostFile:
    return CostFile(cost=entry.cost, provenance={"name": name, **entry.provenance})


def _given(text: str) -> CostFile:
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != len(_NUMBERS) or not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{text}: {len(_NUMBERS)} numbers of ns, 0 or more, are needed: {', '.join(_NUMBERS)}")
    return CostFile(cost=Linear(*numbers), provenance={"from": "given as five numbers"})


def _with_parameter(name: str, entry: Published, last: str) -> CostFile:
    """`last` is such as `pp2`; one that says what is so anyway, as `pp1`, is taken too."""
    match = re.fullmatch(r"([a-z]+)(\d+)", last)
    key, value = (match[1], int(match[2])) if match else (last, 0)
    if value not in (1, *entry.parameters.get(key, ())) or key not in entry.parameters:
        raise ValueError(f"{name} cannot be followed by /{last}: it is {name}{_optional(entry)}")
    cost = msgspec.structs.replace(entry.cost, **{key: value})
    return _file(f"{name}/{last}", msgspec.structs.replace(entry, cost=cost))


def _composed(text: str) -> CostFile:
    """Hardware, model, and how many GPUs share it."""
    match = re.fullmatch(r"([^/]+)/(.+?)(?:/tp(\d+))?(?:/pp(\d+))?", text)
    if match is None or match[1] not in HARDWARE:
        raise ValueError(_unknown(text, list(HARDWARE)))
    return compose(match[1], match[2], int(match[3] or 1), int(match[4] or 1))


def _unknown(text: str, hardware: list[str]) -> str:
    near = get_close_matches(text, names(), n=4, cutoff=0.5)
    systems = sorted({name.split("/")[0] for name in names()})
    nearest = f"The nearest are {', '.join(near)}. " if near else ""
    return (
        f"{text} is no cost model: neither a file, nor five numbers, nor a published name, nor hardware/model/tpN/ppN. "
        f"{nearest}Published are those of {', '.join(systems)}; hardware is {', '.join(hardware)}."
    )
