"""What may be imported where. import-linter (scripts/check) holds the layers; here, what a process really loads."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "nixl", "matplotlib", "numba")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after the statement."""
    code = f"import sys\n{statement}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import penstock",
        "import penstock.core.instance, penstock.core.cluster, penstock.core.laws",
        "import penstock.policies.bundles",
        "import penstock.drivers.sim, penstock.cli.simulate",
        "import penstock.drivers.home, penstock.api.app",
        "import penstock.cli.serve, penstock.cli.bench, penstock.cli.replay",
        "import penstock.drivers.worker",
    ],
)
def test_nothing_heavy_comes_along(statement: str) -> None:
    assert not loaded_by(statement) & set(HEAVY)


def test_the_core_is_the_standard_library_and_msgspec() -> None:
    """The scheduler's own modules, whatever the interpreter loads beside."""
    bare = loaded_by("import msgspec")
    assert loaded_by("import penstock.policies.bundles, penstock.core.laws") - bare <= {
        "penstock",
        *sys.stdlib_module_names,
    }
