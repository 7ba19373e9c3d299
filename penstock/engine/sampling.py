"""From logits to tokens, for all jobs of a step at once.

A token depends on its own row of logits, its request and its index only. Order of operations, as in vLLM:

    log-probabilities are those of the raw logits
    grammar, min_tokens, logit_bias, penalties            greedy takes the best here
    temperature, min_p, top_k, top_p, Gumbel noise        and sampling the best here

Gumbel-max: the argmax of logits plus Gumbel noise is a sample of their softmax, and rounding flips it far less often
than it flips a search in cumulated probabilities.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.engine.backend import Int64
from penstock.engine.draw import draw
from penstock.engine.grammar import GrammarState
from penstock.engine.noise import gumbel, requests_of
from penstock.engine.params import Logprobs, Sampling


@dataclass(slots=True, eq=False)
class Row:
    """Whose row of logits this is."""

    sampling: Sampling
    #: int64: all tokens so far, of which the first `prompt` are the prompt.
    tokens: Int64
    prompt: int
    #: Tokens that end the output, barred before `min_tokens`.
    ends: list[int] = field(default_factory=list)
    grammar: GrammarState | None = None

    @property
    def index(self) -> int:
        """Of the output token to come, from 0."""
        return len(self.tokens) - self.prompt


@dataclass(slots=True)
class Pick:
    """The token of one row; or why there is none."""

    token: int
    logprobs: Logprobs | None = None
    error: str = ""


def is_plain(sampling: Sampling) -> bool:
    """Whether the token is simply that of the greatest logit."""
    return sampling.temperature == 0 and not adjusts(sampling) and sampling.logprobs is None


def adjusts(sampling: Sampling) -> bool:
    """Whether logits change before the greedy choice."""
    return bool(
        sampling.grammar
        or sampling.min_tokens
        or sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Pick]:
    """One token for each row of logits [len(rows), vocab], which stay as they are."""
    return _divide(logits, rows, is_plain, _best, _sample)


Take = Callable[[Tensor, Sequence[Row]], list[Pick]]


def _divide(logits: Tensor, rows: Sequence[Row], test: Callable[[Sampling], bool], yes: Take, no: Take) -> list[Pick]:
    """Picks of the rows that pass the test by `yes`, of the others by `no`."""
    passed = [test(row.sampling) for row in rows]
    if all(passed) or not any(passed):
        return (yes if all(passed) else no)(logits, rows)
    picks: list[Pick] = [Pick(-1)] * len(rows)
    for take, wanted in ((yes, True), (no, False)):
        some = [i for i, ok in enumerate(passed) if ok is wanted]
        part = logits[torch.tensor(some, device=logits.device)]
        for i, pick in zip(some, take(part, [rows[i] for i in some]), strict=True):
            picks[i] = pick
    return picks


def _sample(logits: Tensor, rows: Sequence[Row]) -> list[Pick]:
    raw = logits if logits.dtype == torch.float64 else logits.float()
    changed = [i for i, row in enumerate(rows) if adjusts(row.sampling)]
    scores = raw.clone() if changed else raw
    for i in changed:
        adjust(scores[i], rows[i])
    picks = _divide(scores, rows, lambda sampling: sampling.temperature == 0, _best, _drawn)
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None and not picks[i].error]
    if wanted:
        tokens, tops = [picks[i].token for i in wanted], [rows[i].sampling.logprobs or 0 for i in wanted]
        for i, logprobs in zip(wanted, report(raw[wanted], tokens, tops), strict=True):
            picks[i].logprobs = logprobs
    return picks


def _best(scores: Tensor, rows: Sequence[Row]) -> list[Pick]:
    """The best token of each row."""
    if scores.device.type != "cpu":
        top, token = scores.max(dim=-1)
        return _picks(top.tolist(), token.tolist())
    # Ten times as fast as torch's.
    array = (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()
    tokens = array.argmax(axis=1)
    return _picks(array[np.arange(len(rows)), tokens].tolist(), tokens.tolist())


def _picks(tops: list[float], tokens: list[int]) -> list[Pick]:
    """The best scores and their tokens. A NaN counts as greater than any number, so that it shows here."""
    return [
        Pick(token) if abs(top) < float("inf") else Pick(-1, error=_complaint(top))
        for top, token in zip(tops, tokens, strict=True)
    ]


def _complaint(score: float) -> str:
    return "no token is possible" if score == float("-inf") else "the model's output is not a number"


def adjust(score: Tensor, row: Row) -> None:
    """Change one row of scores [vocab] in place: grammar, min_tokens, logit_bias, penalties."""
    sampling, device = row.sampling, score.device
    if row.grammar is not None:
        score.masked_fill_(~torch.from_numpy(row.grammar.allowed()).to(device), float("-inf"))
    elif row.index < sampling.min_tokens:
        # A grammar knows better where its text can end.
        score[torch.tensor(row.ends, device=device, dtype=torch.int64)] = float("-inf")
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=device)
        score[ids] += torch.tensor(list(sampling.logit_bias.values()), device=device, dtype=score.dtype)
    if sampling.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique(row.tokens)).to(device)
        old = score[seen]
        score[seen] = torch.where(old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        output, counts = np.unique(row.tokens[row.prompt :], return_counts=True)
        penalty = sampling.frequency_penalty * counts + sampling.presence_penalty
        score[torch.from_numpy(output).to(device)] -= torch.from_numpy(penalty).to(device, score.dtype)


def _drawn(scores: Tensor, rows: Sequence[Row]) -> list[Pick]:
    """Samples by temperature, truncation and noise."""
    params = [row.sampling for row in rows]
    if any(p.temperature != 1 for p in params):
        scores = scores / _column([p.temperature for p in params], scores)
    seeds, choices, indices = [p.seed for p in params], [p.choice for p in params], [row.index for row in rows]
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        noise = gumbel(seeds, choices, indices, scores.shape[1], scores.device)
        return _best(truncate(scores, params) + noise, rows)
    floors, ps, totals = least(scores, params), [p.top_p for p in params], torch.zeros(len(rows))
    if min(ps) < 1:
        kept = scores if floors.isneginf().all() else scores.masked_fill(scores < floors, float("-inf"))
        totals = kept.logsumexp(1)
    return _picks(*draw(scores, requests_of(seeds, choices, indices), floors[:, 0], ps, totals))


def truncate(scores: Tensor, params: list[Sampling]) -> Tensor:
    """Minus infinity where min_p, top_k or top_p leaves a token out. Tokens equal to the last one kept are kept."""
    scores = scores.masked_fill(scores < least(scores, params), float("-inf"))
    if any(p.top_p < 1 for p in params):
        scores = scores.masked_fill(scores < nucleus(scores, [p.top_p for p in params]), float("-inf"))
    return scores


def least(scores: Tensor, params: list[Sampling]) -> Tensor:
    """The least score [rows, 1] that min_p and top_k let through."""
    floors = scores.new_full((len(params), 1), float("-inf"))
    if any(p.min_p > 0 for p in params):
        floors = scores.amax(1, keepdim=True) + _column([p.min_p for p in params], scores).log()
    vocab = scores.shape[1]
    rows = [i for i, p in enumerate(params) if 0 < p.top_k < vocab]
    if rows:
        ks = torch.tensor([params[i].top_k for i in rows], device=scores.device)[:, None]
        some = scores if len(rows) == len(params) else scores[rows]
        best = some.topk(int(ks.max()), dim=1).values
        floors[rows] = torch.maximum(floors[rows], best.gather(1, ks - 1))
    return floors


def nucleus(scores: Tensor, ps: list[float]) -> Tensor:
    """The least score [rows, 1] among the fewest best tokens whose probabilities sum to p (Holtzman et al. 2020).

    Looks at a few best tokens first: sorting a whole vocabulary costs more than the rest of sampling.
    """
    p = _column(ps, scores)
    total = scores.logsumexp(1, keepdim=True)
    for k in (min(64, scores.shape[1]), min(1024, scores.shape[1]), scores.shape[1]):
        best = scores.topk(k, dim=1).values
        before = (best - total).exp().cumsum(1).roll(1, 1)
        reached = before[:, 0:1].clone()
        before[:, 0] = 0
        if bool(((reached >= p) | (p >= 1)).all()):
            break
    kept = (before < p).sum(1, keepdim=True).clamp(min=1)
    least = best.gather(1, kept - 1)
    return least.masked_fill(p >= 1, float("-inf"))


def report(logits: Tensor, tokens: list[int], tops: list[int]) -> list[Logprobs]:
    """Log-probabilities of the raw logits [rows, vocab]: each row's token, and so many best ones."""
    all_ = logits.log_softmax(1)
    chosen = all_.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = all_.topk(min(max(tops), logits.shape[1]), dim=1)
    values, ids = best.values.tolist(), best.indices.tolist()
    return [Logprobs(chosen[i], list(zip(ids[i][:n], values[i][:n], strict=True))) for i, n in enumerate(tops)]


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]
