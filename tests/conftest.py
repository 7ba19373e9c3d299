"""Settings that must be there before anything is imported."""

import os
from pathlib import Path

# transformers imports Triton, which reads this when it is imported: where there is no GPU, kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

# Published traces, where a checkout has them beside it; tests that want them skip, saying so, where they are missing.
_TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"
if _TRACES.is_dir():
    os.environ.setdefault("PENSTOCK_TRACES", str(_TRACES))
