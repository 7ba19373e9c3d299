"""What means nothing is refused where it is written."""

import math
from typing import Any

import msgspec
import pytest

from penstock.engine.params import Sampling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: it must be at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1: it must be 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"logit_bias": {3: math.nan}}, "logit_bias is .* of numbers"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"min_tokens": 11}, r"min_tokens is 11: it must be from 0 to max_tokens \(10\)"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**({"max_tokens": 10} | changes))


def test_extremes_pass_and_survive_the_wire() -> None:
    most = Sampling(
        max_tokens=1, temperature=0, top_k=-1, top_p=1, min_p=1, repetition_penalty=100, presence_penalty=-2,
        frequency_penalty=2, logit_bias={5: -100.0}, logprobs=0, min_tokens=1,
    )  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(most), type=Sampling) == most
