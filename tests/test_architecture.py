"""The rooms of src/vpd: what may import what, and that planning stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "vpd"
HEAVY = {"torch", "diffusers", "transformers", "timm", "mlflow", "matplotlib", "accelerate"}


def test_imports_keep_to_the_layers_and_have_no_cycle():
    """The contract is in pyproject.toml: layers, so that there is neither an upward import nor a cycle."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_room_has_a_layer():
    layers = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")} | {"cli"}
    assert {name for name in rooms if f"vpd.{name}" not in layers} == set()
    assert len(rooms) <= 20


@pytest.mark.parametrize("module", ["vpd.cli", "vpd.stages.keys", "vpd.planning.plan", "vpd.training"])
def test_deciding_what_to_do_loads_nothing_heavy(module):
    """Snakemake reads the keys in every process that it starts, and a stage with nothing to do ends after them."""
    program = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
