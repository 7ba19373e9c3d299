"""`PENSTOCK_COMPILE=1 pip install .` makes machine code of the modules below with mypyc, from the same source; else
Penstock is plain Python. docs/compiled.md says what that gains."""

import os
import tempfile
from pathlib import Path

from setuptools import Extension, setup

#: What each step of an instance goes through, live and simulated. Structs of msgspec stay as they are: mypyc cannot
#: compile them, so they have modules of their own.
COMPILED = [
    "penstock/core/batch.py",
    "penstock/core/cluster.py",
    "penstock/core/features.py",
    "penstock/core/instance.py",
    "penstock/core/job.py",
    "penstock/core/laws.py",
    "penstock/core/moves.py",
    "penstock/core/pages.py",
    "penstock/core/predict.py",
    "penstock/core/prefix.py",
    "penstock/cost/rank.py",
    "penstock/drivers/link.py",
    "penstock/drivers/sim.py",
    "penstock/policies/adaptive_pd.py",
    "penstock/policies/fcfs.py",
    "penstock/policies/flood.py",
    "penstock/policies/llumnix.py",
    "penstock/policies/paced.py",
    "penstock/policies/place.py",
    "penstock/policies/prefill_first.py",
    "penstock/policies/prefix_aware.py",
    "penstock/policies/priority.py",
    "penstock/policies/round_robin.py",
    "penstock/policies/scaling.py",
    "penstock/policies/splitfuse.py",
]
#: Types of other packages are not needed, and mypy would read all of them.
SETTINGS = """[mypy]
python_version = 3.11
ignore_missing_imports = True
follow_imports = silent
[mypy-torch.*,transformers.*,scipy.*,numba.*,tokenizers.*,huggingface_hub.*,aiohttp.*,llguidance.*]
follow_imports = skip
"""


def extensions() -> list[Extension]:
    if os.environ.get("PENSTOCK_COMPILE") != "1":
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        raise SystemExit(
            "PENSTOCK_COMPILE=1 needs mypy and a C compiler: pip install mypy setuptools, then pip install "
            "--no-build-isolation ."
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "mypy.ini")
        settings.write_text(SETTINGS)
        compiled: list[Extension] = mypycify(["--config-file", str(settings), *COMPILED], opt_level="3")
    return compiled


setup(ext_modules=extensions())
