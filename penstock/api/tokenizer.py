"""Text to token ids and back, by the model folder's own files. Needs the `tokenizers` library only, never transformers.

A null engine has no folder: `IdTokenizer` stands in, ids below 256 being bytes.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from penstock.api.detokenize import ByteDetokenizer, Detokenizer, WindowDetokenizer

# Its thread pool would warn at every fork, and a front has a thread of its own for long texts.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class TextTokenizer(Protocol):
    #: bos_token, eos_token, ... as chat templates name them; only those that the model has.
    special: dict[str, str]

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of a text; with `special`, those around it too (BOS, usually)."""

    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...

    def detokenizer(self, skip_special: bool) -> Detokenizer: ...

    def token_bytes(self, token: int) -> bytes:
        """What the token stands for in a text, special or not; part of a character at times."""


class IdTokenizer:
    """Ids below 256 are UTF-8 bytes, the others show as `<id>`."""

    def __init__(self) -> None:
        self.special: dict[str, str] = {}

    def encode(self, text: str, special: bool) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def detokenizer(self, skip_special: bool) -> Detokenizer:
        return ByteDetokenizer(self.token_bytes)

    def token_bytes(self, token: int) -> bytes:
        return bytes((token,)) if token < 256 else b"<%d>" % token


class FolderTokenizer:
    """The tokenizer of a model folder: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Raises FileNotFoundError or ValueError with what is missing.
    """

    def __init__(self, folder: Path) -> None:
        settings = read_json(folder / "tokenizer_config.json")
        self._tokenizer = _load(folder, settings)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self._byte_level = isinstance(self._tokenizer.decoder, decoders.ByteLevel)
        self.special = special_tokens(settings, read_json(folder / "special_tokens_map.json"))
        self.token_bytes = lru_cache(maxsize=1 << 18)(self._token_bytes)
        self._shown_bytes = lru_cache(maxsize=1 << 18)(self._bytes_unless_special)

    def encode(self, text: str, special: bool) -> list[int]:
        # Of the library's ways to encode, those of batches let other Python threads go on.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        text: str = self._tokenizer.decode_batch([ids], skip_special_tokens=skip_special)[0]
        return text

    def detokenizer(self, skip_special: bool) -> Detokenizer:
        if self._byte_level:
            return ByteDetokenizer(self._shown_bytes if skip_special else self.token_bytes)
        hidden = self._special if skip_special else set()
        return WindowDetokenizer(
            decode=lambda ids: self.decode(ids, skip_special),
            shown=lambda token: token not in hidden and self._tokenizer.id_to_token(token) is not None,
            is_byte=lambda token: _raw_byte(self._tokenizer.id_to_token(token)) is not None,
        )

    def _token_bytes(self, token: int) -> bytes:
        name: str | None = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if self._byte_level:
            return _byte_level_bytes(name)
        raw = _raw_byte(name)
        return raw if raw is not None else name.replace("▁", " ").encode()

    def _bytes_unless_special(self, token: int) -> bytes:
        return b"" if token in self._special else self._token_bytes(token)


def load_tokenizer(folder: Path | None) -> TextTokenizer:
    return IdTokenizer() if folder is None else FolderTokenizer(folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where there is no such file."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}


def special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """Named special tokens; a value is the text, or an object with the text as `content`."""
    found: dict[str, str] = {}
    for source in sources:
        for name, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                found.setdefault(name, text)
    return found


def _load(folder: Path, settings: dict[str, Any]) -> Any:
    if (path := folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(path))
        # A file may ask for both; a server decides about length by itself.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _from_merges(folder, settings)
    raise FileNotFoundError(f"{folder} has no tokenizer.json: save one there with transformers' save_pretrained()")


def _from_merges(folder: Path, settings: dict[str, Any]) -> Any:
    """GPT-2's older pair of files (OPT comes so)."""
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    prefix_space = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    names = special_tokens(settings, read_json(folder / "special_tokens_map.json"))
    known = [text for text in dict.fromkeys(names.values()) if tokenizer.token_to_id(text) is not None]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in known])
    bos = names.get("bos_token")
    if settings.get("add_bos_token") and bos in known:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 for themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _alphabet()


def _byte_level_bytes(name: str) -> bytes:
    try:
        return bytes(_BYTE_OF[char] for char in name)
    except KeyError:
        # An added token, written as it is.
        return name.encode()


def _raw_byte(name: str) -> bytes | None:
    """The byte of a token such as <0x0A>."""
    if len(name) != 6 or not name.startswith("<0x") or not name.endswith(">"):
        return None
    return bytes.fromhex(name[3:5])
