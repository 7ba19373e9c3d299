"""Settings that must be there before anything is imported."""

import os
import signal
from pathlib import Path

import pytest

# transformers imports Triton, which reads this when it is imported: where there is no GPU, kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that starts the tests in the background has them ignore this, and so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Published traces, where a checkout has them beside it; tests that want them skip, saying so, where they are missing.
_TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"
if _TRACES.is_dir():
    os.environ.setdefault("PENSTOCK_TRACES", str(_TRACES))

#: Folders whose tests start processes and wait for them: these run one after another, all others beside them.
_LIVE = {"api", "drivers", "e2e"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _LIVE.intersection(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker(pytest.mark.xdist_group("live"))
