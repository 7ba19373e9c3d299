"""Lengths of prompts and answers from a line of text that says how they are spread. Seeded, the same everywhere.

fixed:512                 always that
uniform:LO-HI             whole numbers, both ends included
zipf:ALPHA:MEAN[:CAP]     p(k) ~ k^-ALPHA over k = 1 .. 2 MEAN - 1, stretched so that the mean is MEAN, rounded
                          up, then cut off at CAP (Llumnix)
powerlaw:ALPHA:LO-HI      p(x) ~ x^-ALPHA over the whole numbers from LO to HI (LoongServe)
lognormal:MEAN:SIGMA[:CAP]  of that mean, SIGMA that of the logarithm, then cut off at CAP
trace:FILE                those of a trace, shuffled once and then again from the start; prompt with its answer
azure-conv-2023, llumnix:S-S|M-M|L-L|S-L|L-S|sharegpt|burstgpt, loongserve:sharegpt|zipf-1.0|zipf-1.2|zipf-1.4,
distserve:sharegpt|humaneval|longbench
                          the published ones (`published`), prompt and answer
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from penstock.workload import trace
from penstock.workload.published import (
    DISTSERVE_HUMANEVAL,
    DISTSERVE_LONGBENCH,
    DISTSERVE_LONGBENCH_MAX,
    DISTSERVE_SHAREGPT,
    LLUMNIX,
    LLUMNIX_BURSTGPT,
    LLUMNIX_CAP,
    LLUMNIX_SHAREGPT,
    LOONGSERVE_EXPONENTS,
    LOONGSERVE_SHAREGPT,
    LOONGSERVE_ZIPF,
)
from penstock.workload.quantiles import Tokens, whole
from penstock.workload.synth import AZURE_CONV_2023

Array = npt.NDArray[np.float64]
_Rng = np.random.Generator

#: The longest that a law which is kept as a table may reach.
_TABLE_MAX = 10_000_000


def draw(spec: str, count: int, *, outputs: str | None = None, seed: int = 0) -> tuple[Tokens, Tokens]:
    """`count` prompt lengths and answer lengths, in tokens.

    Where `spec` says lengths of one kind only, `outputs` says those of the answers; where it says both, `outputs`
    takes the place of its answers. Raises ValueError on a spec that is none.
    """
    name, _, rest = spec.partition(":")
    if name in _JOINT:
        prompts, answers = _JOINT[name](rest, count, seed)
        return prompts, answers if outputs is None else one(outputs, count, seed, stream=9)
    if outputs is None:
        raise ValueError(f"lengths {spec!r} are of prompts only: say those of the answers too (--output-lengths)")
    return one(spec, count, seed, stream=8), one(outputs, count, seed, stream=9)


def one(spec: str, count: int, seed: int = 0, *, stream: int = 8) -> Tokens:
    """`count` lengths; a spec of prompts and answers gives its answers. `stream` keeps draws of one seed apart."""
    name, _, rest = spec.partition(":")
    if name in _JOINT:
        return _JOINT[name](rest, count, seed)[1]
    if name not in _SINGLE:
        raise ValueError(f"lengths {spec!r}: write {_FORMS}")
    law, least, most = _SINGLE[name]
    args = rest.split(":")
    try:
        if not least <= len(args) <= most:
            takes = f"{least} to {most} parts" if most > least else f"{least} part{'s' * (least > 1)}"
            raise ValueError(f"{name} takes {takes} after its name")
        return law(args, count, np.random.default_rng([seed, stream]))
    except ValueError as error:
        raise ValueError(f"lengths {spec!r}: {error}; write {_FORMS}") from None


def zipf(alpha: float, mean: int, cap: int | None, places: Array) -> Tokens:
    """Lengths of Llumnix's law at `places`, uniform numbers in [0, 1): in its artifact's order, and to the token."""
    ranks = np.arange(1, 2 * mean)
    share = np.cumsum(ranks**-alpha)
    drawn = ranks[np.searchsorted(share / share[-1], places, side="right")]
    lengths: Tokens = np.ceil(drawn * (mean / drawn.mean())).astype(np.int64)
    return lengths if cap is None else np.minimum(lengths, cap)


def _fixed(args: list[str], count: int, rng: _Rng) -> Tokens:
    (length,) = args
    return np.full(count, _tokens(length))


def _uniform(args: list[str], count: int, rng: _Rng) -> Tokens:
    (bounds,) = args
    low, high = _bounds(bounds)
    return rng.integers(low, high, count, endpoint=True)


def _zipf(args: list[str], count: int, rng: _Rng) -> Tokens:
    alpha, mean, *cap = args
    return zipf(_positive(alpha), _table(_tokens(mean)), _cap(cap), rng.random(count))


def _powerlaw(args: list[str], count: int, rng: _Rng) -> Tokens:
    alpha, bounds = args
    low, high = _bounds(bounds)
    return _power(_positive(alpha), low, _table(high), rng.random(count))


def _lognormal(args: list[str], count: int, rng: _Rng) -> Tokens:
    mean, sigma, *cap = args
    spread = _positive(sigma)
    lengths = whole(rng.lognormal(np.log(_positive(mean)) - spread**2 / 2, spread, count))
    most = _cap(cap)
    return lengths if most is None else np.minimum(lengths, most)


def _trace(path: str, count: int, seed: int) -> tuple[Tokens, Tokens]:
    requests = trace.load(path)
    order = np.random.default_rng([seed, 8]).permutation(len(requests))
    taken = np.resize(order, count)
    prompts = np.array([r.prompt_tokens for r in requests])
    return prompts[taken], np.array([r.output_tokens for r in requests])[taken]


def _azure(rest: str, count: int, seed: int) -> tuple[Tokens, Tokens]:
    return AZURE_CONV_2023.lengths.draw(count, np.random.default_rng([seed, 2]))


def _llumnix(sizes: str, count: int, seed: int) -> tuple[Tokens, Tokens]:
    """Inputs, then outputs, from NumPy's legacy generator, as the artifact draws them."""
    if sizes in _CHATS:
        return _CHATS[sizes].draw(count, np.random.default_rng([seed, 8]))
    names = sizes.split("-")
    if len(names) != 2 or not set(names) <= set(LLUMNIX):
        raise ValueError(
            f"lengths 'llumnix:{sizes}': write sharegpt, burstgpt, or input-output sizes of {', '.join(LLUMNIX)}: "
            "llumnix:S-L"
        )
    state = np.random.RandomState(seed)
    prompts, answers = (
        zipf(alpha, mean, LLUMNIX_CAP, state.random_sample(count)) for mean, alpha in (LLUMNIX[n] for n in names)
    )
    return prompts, answers


def _loongserve(name: str, count: int, seed: int) -> tuple[Tokens, Tokens]:
    rng = np.random.default_rng([seed, 8])
    prompts, answers = LOONGSERVE_SHAREGPT.draw(count, rng)
    kind, _, exponent = name.partition("-")
    if name == "sharegpt":
        return prompts, answers
    if kind != "zipf" or exponent not in LOONGSERVE_EXPONENTS:
        known = ", ".join(f"zipf-{a}" for a in LOONGSERVE_EXPONENTS)
        raise ValueError(f"lengths 'loongserve:{name}': write sharegpt, {known} after the colon")
    return _power(float(exponent), *LOONGSERVE_ZIPF, rng.random(count)), answers


def _distserve(name: str, count: int, seed: int) -> tuple[Tokens, Tokens]:
    if name not in _DISTSERVE:
        raise ValueError(f"lengths 'distserve:{name}': write distserve:sharegpt, humaneval or longbench")
    prompts, answers = _DISTSERVE[name].draw(count, np.random.default_rng([seed, 8]))
    return (np.minimum(prompts, DISTSERVE_LONGBENCH_MAX - answers) if name == "longbench" else prompts), answers


def _power(alpha: float, low: int, high: int, places: Array) -> Tokens:
    values = np.arange(low, high + 1)
    share = np.cumsum(values**-alpha)
    return values[np.searchsorted(share / share[-1], places, side="right")]


def _tokens(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{text!r} must be a whole number of tokens, at least 1")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} must be a positive number")
    return value


def _bounds(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    bounds = _tokens(low), _tokens(high)
    if bounds[0] > bounds[1]:
        raise ValueError(f"{text!r} must go from the shorter to the longer")
    return bounds


def _cap(args: list[str]) -> int | None:
    return _tokens(args[0]) if args else None


def _table(tokens: int) -> int:
    if tokens > _TABLE_MAX:
        raise ValueError(f"{tokens} tokens are too many: at most {_TABLE_MAX}")
    return tokens


_DISTSERVE = {"sharegpt": DISTSERVE_SHAREGPT, "humaneval": DISTSERVE_HUMANEVAL, "longbench": DISTSERVE_LONGBENCH}
_CHATS = {"sharegpt": LLUMNIX_SHAREGPT, "burstgpt": LLUMNIX_BURSTGPT}
#: name -> (law, the fewest parts after the name, the most)
_SINGLE: dict[str, tuple[Callable[[list[str], int, _Rng], Tokens], int, int]] = {
    "fixed": (_fixed, 1, 1),
    "uniform": (_uniform, 1, 1),
    "zipf": (_zipf, 2, 3),
    "powerlaw": (_powerlaw, 2, 2),
    "lognormal": (_lognormal, 2, 3),
}
_JOINT: dict[str, Callable[[str, int, int], tuple[Tokens, Tokens]]] = {
    "trace": _trace,
    "azure-conv-2023": _azure,
    "llumnix": _llumnix,
    "loongserve": _loongserve,
    "distserve": _distserve,
}
_FORMS = (
    "fixed:512, uniform:LO-HI, zipf:ALPHA:MEAN[:CAP], powerlaw:ALPHA:LO-HI, lognormal:MEAN:SIGMA[:CAP], trace:FILE, "
    "azure-conv-2023, llumnix:S-L, loongserve:sharegpt, loongserve:zipf-1.2 or distserve:sharegpt"
)
