"""Offline use: answers are the model's own, however they are asked for; what fails is told, and hurts no later call."""

import sys
from pathlib import Path

import pytest
import torch
import transformers

from penstock import LLM, Sampling

sys.path.append(str(Path(__file__).parent / "engine"))
import tiny

GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_bytes(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return LLM(str(folder), backend="plain", pages=64, page_tokens=4, block_tokens=8, threads=1)


def own(folder: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    out = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=12, min_new_tokens=12, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_is_the_models_own(folder: Path, llm: LLM) -> None:
    prompts = tiny.prompts([3, 40, 17])
    answers = llm.generate(prompts, GREEDY)
    assert [a.tokens for a in answers] == [own(folder, p) for p in prompts]
    assert [a.prompt for a in answers] == prompts
    assert {a.finish for a in answers} == {"length"}


def test_text_or_ids_one_or_many(llm: LLM) -> None:
    ids = llm.generate("hello", GREEDY)[0].prompt
    assert len(ids) == 5
    texts = {tuple(a.tokens) for prompts in ("hello", ids, ["hello"], [ids]) for a in llm.generate(prompts, GREEDY)}
    assert len(texts) == 1
    assert [a.prompt for a in llm.generate(["hello", ids], GREEDY)] == [ids, ids]
    assert llm.generate([], GREEDY) == []


def test_many_prompts_share_steps(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than fit at once, answered as each alone, in far fewer steps."""
    prompts = tiny.prompts([5 + n % 30 for n in range(40)])
    each = [Sampling(max_tokens=1 + n % 7, seed=n) for n in range(40)]
    alone = [llm.generate([p], s)[0].tokens for p, s in zip(prompts, each, strict=True)]
    steps = []
    run = llm._engine.run
    monkeypatch.setattr(llm._engine, "run", lambda plan: (steps.append(plan), run(plan))[1])
    assert [a.tokens for a in llm.generate(prompts, each)] == alone
    assert len(steps) < sum(map(len, alone)) / 3


def test_seeds_and_choices(llm: LLM) -> None:
    each = [Sampling(max_tokens=12, seed=s, choice=c) for s, c in ((1, 0), (1, 0), (2, 0), (1, 1))]
    first, again, seed, choice = (a.tokens for a in llm.generate(["hello"] * 4, each))
    assert first == again
    assert len({tuple(first), tuple(seed), tuple(choice)}) == 3


def test_stop_strings(llm: LLM) -> None:
    """Bytes that are whole characters, so that the text can be compared."""
    letters = Sampling(max_tokens=40, seed=5, logit_bias={i: -100.0 for i in range(260) if not 64 <= i < 90})
    whole = llm.generate("a", letters)[0]
    assert (len(whole.text), whole.finish) == (40, "length")
    stop = whole.text[10:12]
    for given in (stop, [stop], ["never", stop]):
        answer = llm.generate("a", letters, stop=given)[0]
        assert (answer.text, answer.finish) == (whole.text[: whole.text.index(stop)], "stop")
        assert answer.tokens == whole.tokens[: whole.text.index(stop) + 2]


def test_the_end_of_text_is_not_shown(llm: LLM) -> None:
    answer = llm.generate("a", Sampling(max_tokens=9, temperature=0, logit_bias={256: 1000.0}))[0]
    assert (answer.tokens, answer.text, answer.finish) == ([256], "", "stop")


def test_logprobs(llm: LLM) -> None:
    answer = llm.generate("a", Sampling(max_tokens=3, temperature=0, ignore_eos=True, logprobs=2))[0]
    assert [entry.top[0][0] for entry in answer.logprobs] == answer.tokens


def test_chat(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert llm.chat(messages, GREEDY) == llm.generate("[system]Be brief.[user]Hi>", GREEDY)[0]
    with pytest.raises(ValueError, match="messages: Object missing required field `role`"):
        llm.chat([{"content": "Hi"}])


def test_chat_without_a_template(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no chat template: use generate"):
        LLM(str(tiny.build_bytes(tmp_path)), backend="plain", pages=64, threads=1).chat(
            [{"role": "user", "content": "Hi"}]
        )


def test_what_cannot_be_asked(llm: LLM) -> None:
    for prompts, params, stop, message in (
        (["a", ""], GREEDY, (), "prompt 1: .*needs a prompt"),
        (["a", [1, 260]], GREEDY, (), "prompt 1: token ids run from 0 to 259"),
        (["a", "b" * 250], GREEDY, (), "prompt 1: .*no more than 256 tokens"),
        (["a", "b"], [GREEDY], (), "1 params for 2 prompts"),
        (["a", "b"], [GREEDY, Sampling(max_tokens=3, grammar="start: %%%")], (), "prompt 1: grammar"),
        ("a", GREEDY, ["x", ""], "a stop string is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate(prompts, params, stop=stop)  # type: ignore[arg-type]
        assert len(llm.generate("a", GREEDY)[0].tokens) == 12


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_breaks_off_leaves_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    expected = llm.generate(["a", "b"], GREEDY)
    run, steps = llm._engine.run, []

    def breaks(plan: object) -> object:
        steps.append(plan)
        if len(steps) == 5:
            raise error
        return run(plan)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine, "run", breaks)
        with pytest.raises(error):
            llm.generate(["c" * 30, "d"], GREEDY)
    assert llm._engine.used() == 0
    assert llm.generate(["a", "b"], GREEDY) == expected


def test_an_answer_that_fails_leaves_nothing(llm: LLM) -> None:
    """Its model turns NaN in the middle; the jobs beside it were not through."""
    expected = llm.generate(["a", "b"], GREEDY)
    weight = next(llm._engine._model.parameters())
    token = expected[1].prompt[0]
    kept = weight[token].clone()
    weight[token] = torch.nan
    with pytest.raises(ValueError, match="prompt 1: the model's output is not a number"):
        llm.generate(["a", "b"], GREEDY)
    weight[token] = kept
    assert llm.generate(["a", "b"], GREEDY) == expected


def test_an_unknown_policy_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="policy 'nope' is not known"):
        LLM("/no/such/model", policy="nope")
