"""Names of prefix blocks: each from all tokens up to the block's end and from what else its KV depends on.

A keyed hash with a secret of the deployment, so that nobody can craft a prompt whose block collides with another's;
the salt carries the adapter version and the tenant, so that prefixes are shared only within them.
"""

import hashlib
from array import array
from collections.abc import Sequence


def block_keys(
    tokens: Sequence[int], block_tokens: int, secret: bytes, salt: str = "", after: Sequence[int] = ()
) -> list[int]:
    """Names of the full blocks of `tokens` that follow the blocks already named `after`. 63-bit integers."""
    keys: list[int] = []
    previous = after[-1] if after else 0
    for start in range(len(after) * block_tokens, len(tokens) - block_tokens + 1, block_tokens):
        content = array("q", tokens[start : start + block_tokens]).tobytes()
        digest = hashlib.blake2b(previous.to_bytes(8, "little") + content, key=secret, salt=_salt(salt), digest_size=8)
        previous = int.from_bytes(digest.digest(), "little") >> 1
        keys.append(previous)
    return keys


def _salt(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest() if text else b""
