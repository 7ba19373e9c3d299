"""Requests made up from the server's own description, against a real server with a tiny model: no 5xx, no hang.

    python bench/fuzz.py [--cases 2800] [--seed 0]

The cases are those of tests/api/test_schemathesis.py. Prints how each endpoint answered; ends with status 1 at the
first answer that breaks a promise, or if the server does not come to rest afterwards.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server_process import ServerProcess, wait_until
from tiny_llama import build

FUZZ = Path(__file__).parents[1] / "tests" / "api" / "test_schemathesis.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2800, help="at most; of 2800 about 2100 differ and are sent")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ServerProcess(str(build(Path(folder))), "--quiet") as server:
        began = time.monotonic()
        aim = {"PENSTOCK_FUZZ_URL": server.url, "PENSTOCK_FUZZ_CASES": str(args.cases)}
        aim["PENSTOCK_FUZZ_SEED"] = str(args.seed)
        status = subprocess.run([sys.executable, str(FUZZ)], env=os.environ | aim, check=False).returncode
        print(f"up to {args.cases} cases in {time.monotonic() - began:.0f} s")
        troubles = [line for line in server.lines if not line.startswith("[penstock]")]
        print(*troubles[-40:], sep="\n")
        wait_until(server.idle, "every page is free or evictable")
        assert server.metrics()["penstock_requests_total"] > 0
        return status or bool(troubles)


if __name__ == "__main__":
    sys.exit(main())
