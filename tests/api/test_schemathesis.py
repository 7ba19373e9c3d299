"""Requests made up from the server's own description: no crash, no hang, no answer that the description does not know.

`PENSTOCK_FUZZ_CASES` says about how many are sent (200), `PENSTOCK_FUZZ_URL` aims them at a server that runs elsewhere,
and `PENSTOCK_FUZZ_SEED` picks other ones. Run as a program, it prints how each endpoint answered.
"""

import os
from collections import Counter

import pytest
import schemathesis
from fake_home import FakeHome
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

CASES = int(os.environ.get("PENSTOCK_FUZZ_CASES", "200"))
SEED = int(os.environ.get("PENSTOCK_FUZZ_SEED", "0"))
URL = os.environ.get("PENSTOCK_FUZZ_URL", "")
#: Not that every well-formed request is accepted: a prompt can be too long, and fields can exclude each other.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
#: The two endpoints that generate have nearly all there is to get wrong.
WEIGHT = 8


def fuzz(url: str, cases: int) -> Counter[tuple[str, int]]:
    """Sends about so many requests; returns how often each path gave each status. Raises on the first failed check."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    weights = [WEIGHT if operation.path.endswith("completions") else 1 for operation in operations]
    seen: Counter[tuple[str, int]] = Counter()
    for operation, weight in zip(operations, weights, strict=True):

        @seed(SEED)
        @settings(
            max_examples=max(1, cases * weight // sum(weights)),
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=_cases(operation))
        def send(case: Case) -> None:
            if isinstance(case.body, dict):
                # So that an engine is soon done with it.
                case.body.setdefault("max_tokens", 4)
            reply = case.call(base_url=url, timeout=60)
            seen[case.operation.path, reply.status_code] += 1
            case.validate_response(reply, checks=CHECKS)

        send()
    return seen


def _cases(operation: schemathesis.APIOperation) -> st.SearchStrategy[Case]:
    """Well-formed and malformed requests; an operation without parameters cannot be malformed."""
    good = operation.as_strategy(GenerationMode.POSITIVE)
    malformed = operation.body or operation.headers or operation.path_parameters
    return st.one_of(good, operation.as_strategy(GenerationMode.NEGATIVE)) if malformed else good


@pytest.fixture
def url(server: str) -> str:
    return URL or server


def test_nothing_breaks(url: str, home: FakeHome) -> None:
    seen = fuzz(url, CASES)
    assert sum(seen.values()) >= CASES // 2
    assert seen["/v1/completions", 200]
    assert seen["/v1/completions", 400]


if __name__ == "__main__":
    for (path, status), count in sorted(fuzz(URL, CASES).items()):
        print(f"{count:6} × {status} {path}")
