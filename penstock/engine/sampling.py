"""From logits to tokens, for all jobs of a step at once.

A token depends on its own row of logits, its request and its index only. Order of operations, as in vLLM:

    log-probabilities are those of the raw logits
    grammar, min_tokens, logit_bias, penalties            greedy takes the best here
    temperature, min_p, top_k, top_p, Gumbel noise        and sampling the best here

Gumbel-max: the argmax of logits plus Gumbel noise is a sample of their softmax, and rounding flips it far less often
than it flips a search in cumulated probabilities.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.engine.backend import Int64
from penstock.engine.grammar import GrammarState
from penstock.engine.noise import gumbel
from penstock.engine.params import Logprobs, Sampling


@dataclass(slots=True)
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


def sample(logits: Tensor, rows: list[Row]) -> list[Pick]:
    """One token for each row of logits [len(rows), vocab], which stay as they are."""
    picks: list[Pick] = [Pick(-1)] * len(rows)
    plain = [i for i, row in enumerate(rows) if is_plain(row.sampling)]
    others = [i for i, row in enumerate(rows) if not is_plain(row.sampling)]
    if plain:
        for i, pick in zip(plain, _best(_select(logits, plain)), strict=True):
            picks[i] = pick
    if others:
        for i, pick in zip(others, _sample(_select(logits, others), [rows[i] for i in others]), strict=True):
            picks[i] = pick
    return picks


def _select(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]


def _sample(logits: Tensor, rows: list[Row]) -> list[Pick]:
    raw = logits if logits.dtype == torch.float64 else logits.float()
    scores = raw.clone()
    for score, row in zip(scores, rows, strict=True):
        if adjusts(row.sampling):
            adjust(score, row)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        scores[drawn] = perturb(scores[drawn], [rows[i] for i in drawn])
    picks = _best(scores)
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None and not picks[i].error]
    if wanted:
        tokens, tops = [picks[i].token for i in wanted], [rows[i].sampling.logprobs or 0 for i in wanted]
        for i, logprobs in zip(wanted, report(raw[wanted], tokens, tops), strict=True):
            picks[i].logprobs = logprobs
    return picks


def _best(scores: Tensor) -> list[Pick]:
    """The best token of each row. A NaN is greater than any number, so that it shows in the maximum."""
    top, tokens = scores.max(dim=-1)
    return [
        Pick(token) if abs(score) < float("inf") else Pick(-1, error=_complaint(score))
        for score, token in zip(top.tolist(), tokens.tolist(), strict=True)
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


def perturb(scores: Tensor, rows: list[Row]) -> Tensor:
    """Scores after temperature, truncation and noise: their argmax is the sample."""
    params = [row.sampling for row in rows]
    scores = scores / _column([p.temperature for p in params], scores)
    scores = truncate(scores, params)
    noise = gumbel(
        [p.seed for p in params],
        [p.choice for p in params],
        [row.index for row in rows],
        scores.shape[1],
        scores.device,
    )
    return scores + noise


def truncate(scores: Tensor, params: list[Sampling]) -> Tensor:
    """Minus infinity where min_p, top_k or top_p leaves a token out. Tokens equal to the last one kept are kept."""
    if any(p.min_p > 0 for p in params):
        least = scores.amax(1, keepdim=True) + _column([p.min_p for p in params], scores).log()
        scores = scores.masked_fill(scores < least, float("-inf"))
    vocab = scores.shape[1]
    ks = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    if min(ks) < vocab:
        scores = _keep_top(scores, ks)
    if any(p.top_p < 1 for p in params):
        scores = scores.masked_fill(scores < nucleus(scores, [p.top_p for p in params]), float("-inf"))
    return scores


def _keep_top(scores: Tensor, ks: list[int]) -> Tensor:
    vocab = scores.shape[1]
    most = max(k for k in ks if k < vocab)
    best = scores.topk(most, dim=1).values
    last = torch.tensor([min(k, most) - 1 for k in ks], device=scores.device)
    least = best.gather(1, last[:, None])
    least[torch.tensor([k == vocab for k in ks], device=scores.device)] = float("-inf")
    return scores.masked_fill(scores < least, float("-inf"))


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
        if bool((reached >= p).all()):
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
