"""The same source as machine code: the tests of the core and of the simulator pass on it, and it decides the same."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: For each row of policies, requests that share prefixes, on three instances, one of which fails; what became of each,
#: and all commands of all cores, as a digest.
RUN = """
import hashlib, sys
import msgspec
import penstock.core.instance
from penstock.drivers.deployment import Deployment, lay_out
from penstock.drivers.sim import Simulation
from penstock.policies.bundles import ROWS
from penstock.workload.compose import Plan, synthesize

said = hashlib.sha256()
def handle(core, event, now):
    commands = core.handle(event, now)
    said.update(msgspec.json.encode([now, event, commands]))
    return commands

for policy in sorted(ROWS):
    roles = ["prefill", "decode", "decode"] if policy in ("distserve", "adaptive-pd") else [""] * 3
    pools = [dict(instances=1, hardware="a100", role=role, kv_tokens=30_000) for role in roles]
    failures = [dict(instance=2, at_s=20.0, down_s=5.0)]
    deployment = dict(model="llama-3.1-8b", policy=policy, pools=pools, failures=failures, move_gb_per_s=5.0)
    laid = lay_out(msgspec.convert(deployment, Deployment))
    plan = Plan(lengths="lognormal:2000:1.0:9000", output_lengths="lognormal:200:0.8:900", count=150, rate=4.0,
                turns="uniform:1-4", think_s=5.0, prefixes=4, prefix_len=512, cancel_share=0.1, seed=3)
    for stepping in (False, True):
        config = msgspec.structs.replace(laid.sim, stepping=stepping)
        records = Simulation(config, laid.costs, handle=handle).run(synthesize(plan))
        said.update(msgspec.json.encode(records, enc_hook=list))
        print(policy, len(records), said.hexdigest())
print(penstock.core.instance.__file__, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(sysconfig.get_config_var("CC").split()[0]) is None:
        pytest.skip("no C compiler is installed")
    folder = tmp_path_factory.mktemp("compiled")
    env = os.environ | {"PENSTOCK_VENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run([ROOT / "scripts/compiled", folder], env=env, capture_output=True, text=True, timeout=280)
    assert not done.returncode, done.stderr
    return folder


def run(*command: str | Path, package: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(package)}
    for name in [name for name in env if name.startswith("PYTEST_")]:
        del env[name]
    return subprocess.run(command, env=env, cwd=ROOT / "tests", capture_output=True, text=True, timeout=280)


def test_the_same_decisions(compiled: Path) -> None:
    plain, fast = (run(sys.executable, "-c", RUN, package=package) for package in (ROOT, compiled))
    assert (plain.returncode, fast.returncode) == (0, 0), plain.stderr + fast.stderr
    assert plain.stdout == fast.stdout
    assert (plain.stderr[-4:-1], fast.stderr[-4:-1]) == (".py", ".so"), "not what was to be compared"


def test_the_laws_of_the_core_and_the_simulator(compiled: Path) -> None:
    simulator = sorted((ROOT / "tests/drivers").glob("test_sim*.py"))
    done = run(Path(sys.executable).with_name("pytest"), ROOT / "tests/core", *simulator, package=compiled)
    assert not done.returncode, done.stdout[-5000:]
