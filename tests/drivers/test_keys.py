"""Names of prefix blocks."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.drivers.keys import block_keys

TOKENS = st.lists(st.integers(0, 10**6), max_size=60)


@given(TOKENS, TOKENS)
def test_names_are_equal_exactly_as_far_as_the_prefixes_are(one: list[int], other: list[int]) -> None:
    a, b = block_keys(one, 8, b"secret"), block_keys(other, 8, b"secret")
    assert len(a) == len(one) // 8
    for i in range(min(len(a), len(b))):
        assert (a[i] == b[i]) == (one[: 8 * i + 8] == other[: 8 * i + 8])


@given(st.lists(st.integers(0, 99), min_size=16, max_size=64), st.integers(0, 8))
def test_naming_in_parts_gives_the_same_names(tokens: list[int], blocks: int) -> None:
    whole = block_keys(tokens, 8, b"secret", "tenant")
    begun = block_keys(tokens[: 8 * blocks], 8, b"secret", "tenant")
    assert begun + block_keys(tokens, 8, b"secret", "tenant", begun) == whole


def test_tenants_and_deployments_share_nothing() -> None:
    names = {block_keys([1] * 8, 8, secret, salt)[0] for secret in (b"a", b"b") for salt in ("", "x", "y")}
    assert len(names) == 6
