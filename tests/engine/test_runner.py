"""The verbs: what runs, what is skipped, what ends a job, and what harms nobody else."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from penstock.core.step import Slice, StepPlan
from penstock.engine import grammar
from penstock.engine.params import Sampling
from penstock.engine.pool import PoolError
from penstock.engine.runner import TransformersEngine

EOS = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_bytes(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def engine(model: Path) -> TransformersEngine:
    return tiny.engine(model)


@pytest.fixture
def driver(engine: TransformersEngine) -> tiny.Driver:
    assert engine.used() == 0
    return tiny.Driver(engine)


def run(driver: tiny.Driver, sampling: Sampling, prompt: list[int] | None = None) -> tuple[list[int], str]:
    driver.add(0, prompt or [5, 6, 7], sampling)
    tokens = driver.finish_all()[0]
    return tokens, driver.finish[0]


def text(model: Path, tokens: list[int]) -> str:
    return str(Tokenizer.from_file(str(model / "tokenizer.json")).decode(tokens))


def test_info(engine: TransformersEngine) -> None:
    info = engine.info
    assert (info.vocab, info.max_len, info.pages, info.page_tokens, info.block_tokens) == (260, 256, 64, 4, 8)
    assert info.eos_token_ids == [EOS]
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert (info.dtype, info.device, info.threads) == ("float32", "cpu", 1)
    assert torch.get_num_threads() == 1


def test_length(driver: tiny.Driver) -> None:
    tokens, finish = run(driver, tiny.greedy(5))
    assert (len(tokens), finish) == (5, "length")


def test_stop_token(driver: tiny.Driver) -> None:
    tokens, _ = run(driver, tiny.greedy(8))
    again, finish = run(tiny.Driver(driver.engine), tiny.greedy(8, stop_token_ids=[tokens[3]]))
    assert (again, finish) == (tokens[: tokens.index(tokens[3]) + 1], f"stop:{tokens[3]}")


def test_eos_and_min_tokens_and_ignore_eos(driver: tiny.Driver) -> None:
    eager = {"max_tokens": 6, "temperature": 0.0, "logit_bias": {EOS: 100.0}}
    assert run(driver, Sampling(**eager)) == ([EOS], "stop")
    tokens, finish = run(tiny.Driver(driver.engine), Sampling(**eager, min_tokens=3))
    assert (tokens.index(EOS), finish) == (3, "stop")
    assert run(tiny.Driver(driver.engine), Sampling(**eager, ignore_eos=True)) == ([EOS] * 6, "length")


def test_what_cannot_run_is_reported(driver: tiny.Driver) -> None:
    engine = driver.engine
    driver.add(1, [5, 6, 7, 8], tiny.greedy(1))
    driver.add(2, [5, 6, 7, 8], tiny.greedy(9))
    outs = engine.run(StepPlan(0, [Slice(1, 0, 4), Slice(2, 1, 2), Slice(99, 0, 1)]))
    assert {o.job: (o.executed, len(o.tokens), o.finish) for o in outs} == {
        1: (4, 1, "length"), 2: (0, 0, None), 99: (0, 0, None),
    }  # fmt: skip
    assert [(o.job, o.executed, o.index) for o in engine.run(StepPlan(1, [Slice(1, 4, 1), Slice(2, 0, 3)]))] == [
        (1, 0, 1)
    ]
    assert [(o.job, o.executed, o.index) for o in engine.run(StepPlan(2, [Slice(2, 3, 1)]))] == [(2, 1, 0)]
    for job in (1, 2):
        engine.release(job, forget=True)


def test_preempted_job_is_skipped_until_it_is_bound(driver: tiny.Driver) -> None:
    driver.add(1, [5, 6, 7, 8], tiny.greedy(4))
    driver.engine.release(1, forget=False)
    assert [(o.job, o.executed) for o in driver.engine.run(StepPlan(0, [Slice(1, 0, 4)]))] == [(1, 0)]
    driver.engine.release(1, forget=True)


@pytest.mark.parametrize(
    ("tokens", "prompt", "changes", "message"),
    [
        ([], 0, {}, "needs a prompt"),
        ([1] * 250, 250, {}, "no more than 256"),
        ([1] * 13, 3, {}, "something left to do"),
        ([260], 1, {}, "from 0 to 259"),
        ([1], 1, {"logit_bias": {-1: 1.0}}, "from 0 to 259"),
        ([1], 1, {"stop_token_ids": [300]}, "from 0 to 259"),
        ([1], 1, {"grammar": "start: %%%"}, "grammar"),
    ],
)
def test_bad_jobs_are_refused(
    driver: tiny.Driver, tokens: list[int], prompt: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        driver.engine.add(1, tokens, prompt, Sampling(max_tokens=10, **changes))


def test_a_job_that_turns_nan_fails_alone(engine: TransformersEngine, driver: tiny.Driver) -> None:
    prompts = tiny.prompts([20, 30, 9])
    for job, prompt in enumerate(prompts):
        driver.add(job, prompt, tiny.greedy(10))
    expected = [list(o) for o in driver.finish_all().values()]
    driver = tiny.Driver(engine)
    for job, prompt in enumerate(prompts):
        driver.add(job, prompt, tiny.greedy(10))
    driver.step(dict.fromkeys(range(3), 64))
    engine._kv.keys[:, engine._pool.tables[engine._jobs[1].table.row, 2]] = float("nan")
    outputs = driver.finish_all()
    assert driver.finish[1] == "error:the model's output is not a number"
    assert [outputs[0], outputs[2]] == [expected[0], expected[2]]
    assert engine.used() == 0


def sampled(**changes: Any) -> Sampling:
    return Sampling(**({"max_tokens": 20, "seed": 11, "ignore_eos": True} | changes))


def test_same_seed_same_tokens_in_any_company(driver: tiny.Driver) -> None:
    alone, _ = run(driver, sampled(top_p=0.9, presence_penalty=0.5))
    driver = tiny.Driver(driver.engine)
    for job, prompt in enumerate(tiny.prompts([4, 33, 12]), start=1):
        driver.add(job, prompt, sampled(seed=job))
    driver.step({1: 3, 2: 20, 3: 12})
    driver.add(0, [5, 6, 7], sampled(top_p=0.9, presence_penalty=0.5))
    assert driver.finish_all(chunk=2)[0] == alone


def test_choices_differ(driver: tiny.Driver) -> None:
    for choice in range(4):
        driver.add(choice, [5, 6, 7], sampled(choice=choice))
    assert len({tuple(tokens) for tokens in driver.finish_all().values()}) == 4


@pytest.mark.parametrize("seen", [1, 7, 19])
def test_resumed_job_goes_on_as_it_would_have(driver: tiny.Driver, seen: int) -> None:
    """Delivered tokens count as output for noise, penalties and length."""
    sampling = sampled(frequency_penalty=1.0, repetition_penalty=1.2, min_tokens=10)
    whole, _ = run(driver, sampling)
    driver = tiny.Driver(driver.engine)
    driver.add(0, [5, 6, 7], sampling, delivered=whole[:seen])
    assert driver.finish_all(chunk=4)[0] == whole
    assert driver.finish[0] == "length"


def test_logprobs_are_of_the_raw_distribution(engine: TransformersEngine, driver: tiny.Driver) -> None:
    driver.add(0, [5, 6, 7], sampled(max_tokens=1, temperature=0.3, logit_bias={9: 50.0}, logprobs=2))
    out = driver.step({0: 3})[0]
    engine._model.set_attn_implementation("eager")
    expected = engine._model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(0)
    engine._model.set_attn_implementation("penstock")
    assert out.tokens == [9]
    assert out.logprobs is not None
    assert out.logprobs[0].chosen == pytest.approx(float(expected[9]), abs=1e-5)
    assert [t for t, _ in out.logprobs[0].top] == expected.topk(2).indices.tolist()
    engine.release(0, forget=True)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_json_schema(model: Path, driver: tiny.Driver, seed: int) -> None:
    tokens, finish = run(
        driver, Sampling(max_tokens=120, seed=seed, grammar=LLMatcher.grammar_from_json_schema(SCHEMA))
    )
    assert finish == "stop"
    answer = json.loads(text(model, [t for t in tokens if t != EOS]))
    assert answer.keys() == {"name", "age"}
    assert isinstance(answer["name"], str)
    assert 0 <= answer["age"] <= 150


def test_regex(model: Path, driver: tiny.Driver) -> None:
    tokens, finish = run(
        driver, Sampling(max_tokens=30, seed=1, grammar=LLMatcher.grammar_from_regex(r"[a-c]{3}-[0-9]{4}"))
    )
    assert finish == "stop"
    answer = text(model, [t for t in tokens if t != EOS])
    assert len(answer) == 8
    assert set(answer[:3]) <= set("abc")


@pytest.mark.parametrize("seen", [1, 5])
def test_grammar_follows_delivered_tokens(driver: tiny.Driver, seen: int) -> None:
    sampling = Sampling(max_tokens=120, seed=3, grammar=LLMatcher.grammar_from_json_schema(SCHEMA))
    whole, _ = run(driver, sampling)
    driver = tiny.Driver(driver.engine)
    driver.add(0, [5, 6, 7], sampling, delivered=whole[:seen])
    assert driver.finish_all()[0] == whole


def test_delivered_tokens_outside_the_grammar_are_refused(driver: tiny.Driver) -> None:
    with pytest.raises(ValueError, match="do not fit the grammar"):
        driver.engine.add(1, [5, 6, 7], 2, Sampling(max_tokens=9, grammar=LLMatcher.grammar_from_regex("[a-c]+")))


def test_the_first_grammar_waits_for_no_tokenizer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded at start, and what is wrong with it is told to those who need it."""
    loaded: list[str] = []

    def load(path: str, **_: object) -> LLTokenizer:
        loaded.append(path)
        return LLTokenizer(path, n_vocab=260)

    monkeypatch.setattr(grammar, "LLTokenizer", load)
    driver = tiny.Driver(tiny.engine(model))
    assert loaded == [str(model / "tokenizer.json")]
    driver.add(1, [5], Sampling(max_tokens=9, grammar=LLMatcher.grammar_from_regex("a")))
    assert len(loaded) == 1


def test_a_tokenizer_that_grammars_cannot_use_harms_nobody_else(tmp_path: Path) -> None:
    (tiny.build("Llama", tmp_path) / "tokenizer.json").write_text("{}")
    driver = tiny.Driver(tiny.engine(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used"):
        driver.engine.add(1, [5], 1, Sampling(max_tokens=9, grammar=LLMatcher.grammar_from_regex("a")))
    assert len(run(driver, tiny.greedy(3))[0]) == 3


def test_clear(driver: tiny.Driver) -> None:
    """Nothing is left, whatever state the jobs are in."""
    for job in range(3):
        driver.add(job, [5] * 20, tiny.greedy(9))
    driver.engine.add(9, [5], 1, tiny.greedy(9))
    driver.step({0: 20, 1: 7})
    driver.engine.share(0, 77)
    driver.engine.clear()
    assert driver.engine.used() == 0
    assert len(run(tiny.Driver(driver.engine), tiny.greedy(3))[0]) == 3


def test_without_a_tokenizer_grammars_are_refused(tmp_path: Path) -> None:
    bare = tiny.engine(tiny.build("Llama", tmp_path))
    with pytest.raises(ValueError, match=r"no tokenizer.json"):
        bare.add(1, [5], 1, Sampling(max_tokens=9, grammar=LLMatcher.grammar_from_regex("a")))


def test_a_job_is_not_replaced(driver: tiny.Driver) -> None:
    """Else its pages would belong to nobody."""
    driver.add(1, [5, 6, 7], tiny.greedy(4))
    driver.step({1: 3})
    with pytest.raises(AssertionError, match="job 1 is here already"):
        driver.engine.add(1, [5, 6, 7], 3, tiny.greedy(4))
    assert len(driver.finish_all()[1]) == 4
    assert driver.engine.used() == 0


def test_pages_never_run_over(tmp_path: Path) -> None:
    small = tiny.engine(tiny.build("Llama", tmp_path), pages=20)
    assert small.info.max_len == 80
    driver = tiny.Driver(small)
    driver.add(0, [5] * 60, tiny.greedy(5))
    driver.add(1, [5] * 60, tiny.greedy(5))
    driver.step({0: 60})
    with pytest.raises(PoolError, match="15 pages needed, 5 of 20 free"):
        driver.step({1: 60})
