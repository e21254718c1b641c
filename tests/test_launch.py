"""Training in several processes: equal to one, whole after the loss of a process, and its mistakes told once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forked import wait_for
from training_fakes import MADE_FROM, Samples, network, tiny_spec
from vpd.config.params import load_params
from vpd.config.schema import LossSpec
from vpd.training.batch_norm import synchronise
from vpd.utils.errors import UserError
from vpd.utils.launch import RESTARTS, launch, process_count

ROOT = Path(__file__).parent.parent
STEPS = 12
MAPS = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 10
FACTORS = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(2))


def train_here(where: Path, delay: float = 0.0, wild: bool = False, **training) -> None:
    """The tiny training, as one of several processes if the environment says so; each notes its beginning."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from vpd.training.loop import fit

    rank = os.environ.get("RANK", "0")
    where.mkdir(exist_ok=True)
    with (where / f"begun{rank}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    optimizer = tiny_spec().training.optimizer.model_copy(update={"lr": 1e30 if wild else 1e-2})
    spec = tiny_spec(**{"save_every": 2, "optimizer": optimizer} | training)
    fit(network(dropout=0.0, norm=False), Samples(delay=delay), spec, 0, where / "out", where / "state", MADE_FROM)


def weights(where: Path) -> dict[str, torch.Tensor]:
    return load_file(where / "out" / "final.safetensors")


def losses(where: Path) -> list[float]:
    return [float(line.split(",")[2]) for line in (where / "out" / "history.csv").read_text().splitlines()[1:]]


def pids(where: Path, rank: int) -> list[int]:
    """Processes that began as this rank, the newest last."""
    path = where / f"begun{rank}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Processes of their own find this file's functions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("two")
    launch(train_here, (where,), where / "state", 2)
    return where


def in_background(where: Path, delay: float, **environment: str) -> subprocess.Popen:
    """``launch`` in a process that can be killed."""
    code = (
        "import sys; from pathlib import Path; from test_launch import train_here\n"
        "from vpd.utils.launch import launch\n"
        "if __name__ == '__main__':\n"
        "    where = Path(sys.argv[1])\n"
        "    launch(train_here, (where, float(sys.argv[2])), where / 'state', int(sys.argv[3]))\n"
    )
    main = where / "main.py"
    main.write_text(code)
    count = "1" if environment else "2"
    return subprocess.Popen([sys.executable, main, where, str(delay), count], env={**os.environ, **environment})


# ---------------------------------------------------------------------------------------------------------------- equal
def test_two_processes_have_the_losses_and_weights_of_one(two, tmp_path):
    train_here(tmp_path)
    assert losses(two) == pytest.approx(losses(tmp_path), rel=1e-6)
    alone, both = weights(tmp_path), weights(two)
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], rtol=1e-5, atol=1e-7)
    assert len(pids(two, 0)) == len(pids(two, 1)) == 1


UNEVEN = LossSpec(kind="cross-entropy", average="valid-pixels", class_weights=(0.2, 1.0, 3.0))


def train_unevenly(where: Path, accumulate: int) -> None:
    train_here(where, loss=UNEVEN, accumulate=accumulate)


@pytest.mark.slow
def test_processes_compute_the_parts_that_one_would_accumulate(tmp_path):
    """Even where the loss of a part is no plain mean over its pixels."""
    train_unevenly(tmp_path / "one", 2)
    launch(train_unevenly, (tmp_path / "both", 1), tmp_path / "both" / "state", 2)
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    train_unevenly(tmp_path / "whole", 1)
    assert losses(tmp_path / "whole") != pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def normalise(where: Path) -> None:
    """One training pass of a batch norm over this process's half of the maps; what it gives and leaves."""
    torch.distributed.init_process_group("gloo")
    rank, half = torch.distributed.get_rank(), MAPS[2 * torch.distributed.get_rank() :][:2].clone().requires_grad_()
    model = synchronise(torch.nn.Sequential(norm_layer()), torch.device("cpu"))
    given = model(half)
    (given * FACTORS[2 * rank :][:2]).sum().backward()
    found = {"given": given, "gradient": half.grad, "weight": model[0].weight.grad, "bias": model[0].bias.grad}
    torch.save({**found, **model.state_dict()}, where / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def norm_layer() -> torch.nn.BatchNorm2d:
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    torch.nn.init.constant_(norm.weight, 2.0)
    return norm


def test_a_shared_batch_norm_is_torchs_over_the_joint_batch(tmp_path):
    launch(normalise, (tmp_path,), tmp_path / "state", 2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    norm, maps = norm_layer(), MAPS.clone().requires_grad_()
    given = norm(maps)
    (given * FACTORS).sum().backward()
    joined = {name: torch.cat([half[name] for half in halves]) for name in ("given", "gradient")}
    torch.testing.assert_close(joined["given"], given)
    torch.testing.assert_close(joined["gradient"], maps.grad, rtol=1e-4, atol=1e-5)
    for name, gradient in (("weight", norm.weight.grad), ("bias", norm.bias.grad)):
        torch.testing.assert_close(halves[0][name] + halves[1][name], gradient, rtol=1e-4, atol=1e-5)
    for half in halves:
        for name, value in norm.state_dict(prefix="0.").items():
            torch.testing.assert_close(half[name], value)


# --------------------------------------------------------------------------------------------------------------- deaths
@pytest.mark.cluster
@pytest.mark.parametrize("rank", [0, 1])
def test_after_the_loss_of_a_process_all_go_on_and_end_with_the_same_bits(two, tmp_path, rank):
    parent = in_background(tmp_path, 0.1)
    wait_for(lambda: list(tmp_path.glob("state/*/step-*.pt")))
    os.kill(pids(tmp_path, rank)[-1], signal.SIGKILL)
    assert parent.wait(120) == 0
    assert all(2 <= len(pids(tmp_path, number)) <= 1 + RESTARTS for number in (0, 1))
    assert all(torch.equal(weights(tmp_path)[name], value) for name, value in weights(two).items())
    assert losses(tmp_path) == losses(two)


@pytest.mark.cluster
def test_sigterm_saves_the_state_and_the_next_call_goes_on(two, tmp_path):
    parent = in_background(tmp_path, 0.1)
    wait_for(lambda: list(tmp_path.glob("state/*/step-*.pt")))
    parent.terminate()
    assert parent.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "out").exists()
    assert in_background(tmp_path, 0.0).wait(120) == 0
    assert all(torch.equal(weights(tmp_path)[name], value) for name, value in weights(two).items())


@pytest.mark.slow
def test_a_mistake_reaches_the_caller_and_nothing_is_started_again_for_it(tmp_path):
    with pytest.raises(UserError, match=r"the loss of step \d+ is (nan|inf); lower training\.optimizer\.lr"):
        launch(train_here, (tmp_path, 0.0, True), tmp_path / "state", 2)
    assert len(pids(tmp_path, 0)) == 1 < 1 + RESTARTS


# ------------------------------------------------------------------------------------------------------- where it runs
def test_there_is_a_process_for_each_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [process_count(gpus) for gpus in (1, 8)] == [1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [process_count(gpus) for gpus in (1, 4, 8)] == [1, 4, 4]
    assert process_count(1, environment={"VPD_PROCESSES": "2"}) == 2
    with pytest.raises(UserError, match="VPD_PROCESSES=none is not a number of processes"):
        process_count(8, environment={"VPD_PROCESSES": "none"})


def test_resources_are_an_experiments_own_or_its_tasks(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    block = "resources: {depth: {gpus: 2}, depth-fast: {gpus: 4}}"
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("  smoke:\n", f"  smoke:\n    {block}\n", 1))
    params = load_params(path, "smoke")
    found = {name: params.resources(name) for name in ("depth-full", "depth-fast", "seg-full")}
    assert [found[name].gpus for name in found] == [2, 4, 1]
    path.write_text(path.read_text().replace("depth: {gpus", "dept: {gpus"))
    with pytest.raises(UserError, match="unknown task or experiment 'dept'; did you mean 'depth'"):
        load_params(path, "smoke").resources("depth-full")
    assert json.loads(params.resolve("depth-full").model_dump_json()).get("resources") is None
