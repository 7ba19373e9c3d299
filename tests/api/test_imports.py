"""The front costs no torch."""

import subprocess
import sys


def test_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, penstock.api.app, penstock.api.server, penstock.api.ledger\n"
        "from penstock.api.config import FrontConfig\n"
        "print([name for name in ('torch', 'transformers', 'numba', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
