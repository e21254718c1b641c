"""Shared test settings: one thread, deterministic algorithms, no network, no telemetry."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

import shutil
from pathlib import Path

import pytest
import torch

from vpd.config.params import load_params
from vpd.tracking.store import connected

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long end-to-end file goes first, so that the short ones run beside it."""
    items.sort(key=lambda item: item.path.name != "test_reproduce.py")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A narrow Stable Diffusion whose VAE reduces by 4."""
    from fixtures.parity.narrow import write_factor_4

    torch.manual_seed(0)
    return write_factor_4(tmp_path_factory.mktemp("factor4"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory) -> Path:
    """One whose VAE reduces by 8."""
    from fixtures.parity.narrow import write_factor_8

    torch.manual_seed(0)
    return write_factor_8(tmp_path_factory.mktemp("factor8"))


@pytest.fixture(scope="session")
def specs() -> dict:
    """The spec of each task's first experiment at the smoke scale."""
    params = load_params(Path(__file__).parent.parent / "params.yaml", scale="smoke")
    first = {line.task: name for name, line in reversed(params.experiments.items())}
    return {task: params.resolve(name) for task, name in first.items()}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A file of MLflow's without runs, which takes seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with connected(f"sqlite:///{path}") as client:
        client.search_experiments()
    return path


@pytest.fixture
def uri(tmp_path, empty_store) -> str:
    """A store of the test's own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
