"""Text that comes token by token is the text of the whole."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penstock.api.tokenizer import FolderTokenizer, IdTokenizer, TextTokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "wörld größe naïve café",
    "日本語のテキスト",
    "🙂🙃 👩‍👩‍👧 done",
] * 20


def byte_level(folder: Path) -> Path:
    """GPT-2's kind, with special tokens, an added word, and one that reads like a byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("é", special=False)])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sentencepiece_like(folder: Path) -> Path:
    """Llama 2's kind: ▁ for spaces, byte tokens for what the vocabulary has not, the first space stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁the", "▁fox", "fox", "a", "b", "▁a", "▁▁", "é", "日", ".", ""]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def metaspace(folder: Path) -> Path:
    pieces = ["<unk>", "▁", "▁the", "▁fox", "fox", "a", "é"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


KINDS = {"byte-level": byte_level, "sentencepiece-like": sentencepiece_like, "metaspace": metaspace}


@pytest.fixture(scope="module", params=[*KINDS, "ids"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    if request.param == "ids":
        return IdTokenizer()
    return FolderTokenizer(KINDS[request.param](tmp_path_factory.mktemp(request.param)))


def streamed(tokenizer: TextTokenizer, ids: Sequence[int], skip_special: bool, sizes: Sequence[int]) -> list[str]:
    detokenizer, texts, at = tokenizer.detokenizer(skip_special), [], 0
    for size in [*sizes, len(ids)]:
        texts.append(detokenizer.push(ids[at : at + size]))
        at += size
    return [*texts, detokenizer.end()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(ids=st.lists(st.integers(0, 420)), skip_special=st.booleans(), sizes=st.lists(st.integers(0, 3), max_size=40))
@example(ids=[262, 270, 260], skip_special=False, sizes=[1, 1, 1])  # fox, a token without text, ▁the
def test_streamed_is_whole(tokenizer: TextTokenizer, ids: list[int], skip_special: bool, sizes: list[int]) -> None:
    assert "".join(streamed(tokenizer, ids, skip_special, sizes)) == tokenizer.decode(ids, skip_special)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_no_half_characters_are_shown(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, False)
    shown = streamed(tokenizer, ids, False, [1] * len(ids))
    if "�" not in tokenizer.decode(ids, False):
        assert not any("�" in piece for piece in shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def words(folder: Path) -> FolderTokenizer:
    return FolderTokenizer(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_token_bytes_add_up_to_the_text(words: FolderTokenizer, text: str) -> None:
    tokenizer = words
    ids = tokenizer.encode(text.replace("é", "e"), False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text.replace("é", "e")


def test_special_tokens_come_when_asked_for(folder: Path) -> None:
    tokenizer = FolderTokenizer(folder)
    with_bos, bare = tokenizer.encode("the fox", True), tokenizer.encode("the fox", False)
    assert with_bos[1:] == bare
    assert tokenizer.decode(with_bos, False) == "<s>the fox"
    assert tokenizer.decode(with_bos, True) == "the fox"


def test_gpt2_files_work_too(folder: Path, tmp_path: Path) -> None:
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "the"}, "add_bos_token": true}')
    tokenizer = FolderTokenizer(tmp_path)
    assert tokenizer.encode("quick fox", False) == whole.encode("quick fox", add_special_tokens=False).ids
    assert tokenizer.decode(tokenizer.encode("ö 🙂", True), False) == "theö 🙂"
    assert tokenizer.special == {"bos_token": "the"}


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        FolderTokenizer(tmp_path)
