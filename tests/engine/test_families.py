"""Every supported family gives exactly transformers' own greedy tokens, however its work is cut and its pages lie; so
do two ranks that share the model, where they can."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers

from penstock.engine.backend import Step
from penstock.engine.runner import TransformersEngine

LENGTHS = (1, 9, 31, 50)
COUNT = 12


class Case:
    """One family: its engine, prompts, and what transformers makes of them."""

    def __init__(self, family: str, folder: Path, changes: dict[str, Any] | None = None, ranks: int = 1) -> None:
        tiny.build(family, folder, **(changes or {}))
        self.engine = tiny.engine(folder, tensor_parallel_size=ranks)
        self.driver = tiny.Driver(self.engine)
        self.prompts = tiny.prompts(LENGTHS)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        self.expected = [self.generate(p) for p in self.prompts]

    def generate(self, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        out = self.model.generate(ids, do_sample=False, max_new_tokens=COUNT, pad_token_id=0)
        return out[0, len(prompt) :].tolist()

    def add_all(self) -> None:
        for job, prompt in enumerate(self.prompts):
            self.driver.add(job, prompt, tiny.greedy(COUNT))

    def check(self, chunk: int = 1 << 20) -> None:
        outputs = self.driver.finish_all(chunk)
        assert [outputs[job] for job in range(len(self.prompts))] == self.expected


CASES = [(family, ranks) for family in sorted(tiny.FAMILIES) for ranks in (1, 2) if ranks == 1 or family in tiny.CUT]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    family, ranks = request.param
    case = Case(family, tmp_path_factory.mktemp(family), ranks=ranks)
    yield case
    tiny.close(case.engine)


@pytest.fixture
def case(shared: Case) -> Case:
    """The family's engine, empty; what a test leaves behind shows here."""
    shared.driver = tiny.Driver(shared.engine)
    for key in list(shared.engine._pool.blocks):
        shared.engine.evict(key)
    assert shared.engine.used() == 0
    return shared


def test_answers_differ(case: Case) -> None:
    """Else equal tokens would prove little."""
    assert len({tuple(tokens) for tokens in case.expected}) == len(LENGTHS)
    assert sum(len(set(tokens)) for tokens in case.expected) > 2 * len(LENGTHS)


def test_mixed_lengths(case: Case) -> None:
    case.add_all()
    case.check()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunked_prefill(case: Case, chunk: int) -> None:
    case.add_all()
    case.check(chunk)


def test_jobs_that_come_and_go(case: Case) -> None:
    """Composition changes from step to step, and pages go from job to job."""
    draw = np.random.default_rng(5)
    for job, prompt in enumerate(case.prompts):
        case.driver.add(job, prompt, tiny.greedy(COUNT))
        for _ in range(3):
            live = [j for j in case.driver.done if j not in case.driver.finish]
            case.driver.step({j: int(draw.integers(1, 9)) for j in live if draw.random() < 0.7 or j == job})
    case.check(chunk=5)


def test_shuffled_pages(case: Case) -> None:
    """The same answers from pages in any order, full of what earlier jobs left, NaN even."""
    for kv in case.engine.kv:
        kv.keys.fill_(float("nan"))
        kv.values.fill_(float("nan"))
    np.random.default_rng(1).shuffle(case.engine._pool.free)
    case.add_all()
    case.check(chunk=6)


def test_preemption(case: Case) -> None:
    case.add_all()
    case.driver.step({0: 1, 1: 9, 2: 20, 3: 7})
    case.driver.step({0: 1, 1: 1, 2: 11})
    for job in (1, 2, 3):
        case.driver.preempt(job)
    case.driver.step({0: 1})
    for job in (3, 2, 1):
        case.driver.bind(job)
    case.check(chunk=13)


def test_prefix_reuse(case: Case) -> None:
    """Blocks of one job are the start of another, which computes only its own part."""
    case.driver.add(3, case.prompts[3], tiny.greedy(COUNT))
    case.driver.step({3: 50})
    for key in (100, 101, 102):
        case.engine.share(3, key)
    prompt = case.prompts[3][:24] + case.prompts[2][:5]
    case.driver.add(7, prompt, tiny.greedy(COUNT), keys=(100, 101, 102))
    assert case.driver.done[7] == 24
    outputs = case.driver.finish_all()
    assert outputs[3] == case.expected[3]
    assert outputs[7] == case.generate(prompt)
    assert case.engine.used() == 6
    for key in (100, 101, 102):
        case.engine.evict(key)
    assert case.engine.used() == 0


def test_blocks_that_two_jobs_computed_become_one(case: Case) -> None:
    for job in (1, 2):
        case.driver.add(job, case.prompts[3], tiny.greedy(COUNT))
    case.driver.step({1: 50, 2: 50})
    before = case.engine.used()
    for key in (5, 6):
        case.engine.share(1, key)
        case.engine.share(2, key)
    assert case.engine.used() == before - 4
    outputs = case.driver.finish_all()
    assert outputs[1] == outputs[2] == case.expected[3]


def test_delivered_tokens_are_resumed(case: Case) -> None:
    for job, (prompt, tokens) in enumerate(zip(case.prompts, case.expected, strict=True)):
        case.driver.add(job, prompt, tiny.greedy(COUNT), delivered=tokens[: 2 * job + 1])
    case.check(chunk=10)


def test_logits(case: Case) -> None:
    """Logits, not only their order, are the model's own, at every step of a chunked and mixed run."""
    seen = listen(case.engine)
    case.add_all()
    case.check(chunk=8)
    case.engine._backend.forward = seen.forward
    assert len(seen.logits) > 10
    for position, ids, logits in seen.logits:
        with torch.inference_mode():
            own = case.model(torch.tensor([ids])).logits[0, position]
        torch.testing.assert_close(logits, own, atol=1e-4, rtol=0)


class listen:
    """Notes the logits of a step with the tokens behind them; a job is told by its first token's row in the tables."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.logits: list[tuple[int, list[int], torch.Tensor]] = []
        self.forward = engine._backend.forward
        self.engine = engine
        engine._backend.forward = self

    def __call__(self, model: object, step: Step, kv: object) -> torch.Tensor:
        logits = self.forward(model, step, kv)
        states = {int(s.table.row): s for s in self.engine._jobs.values() if s.table}
        for row, value in zip(step.emit, logits, strict=True):
            job = int(np.searchsorted(step.query_start, row, side="right")) - 1
            first_page = step.tables[job, 0]
            state = next(s for r, s in states.items() if self.engine._pool.tables[r, 0] == first_page)
            self.logits.append((int(step.positions[row]), state.tokens.tolist(), value.clone()))
        return logits


_MORE = {"vocab_size": tiny.VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "Cohere": _MORE,
    "DeepseekV3": _MORE | {
        "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    },
    "GPT2": {
        "vocab_size": tiny.VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None,
    },
    "Gemma": _MORE | {"head_dim": 16},
    "Granite": _MORE | {"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "Mixtral": _MORE | {"num_local_experts": 4},
    "Phi": _MORE,
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(MORE))
def test_other_families(family: str, tmp_path: Path) -> None:
    """Experts, values narrower than keys, scales of their own, learned positions: all through the same interface."""
    case = Case(family, tmp_path, MORE[family])
    case.add_all()
    case.check(chunk=11)
