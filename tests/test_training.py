"""The training loop: what it computes, and that nothing which ends a process changes the result or leaves half a file."""

import csv
import functools
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from real_archives import Attack
from training_fakes import MADE_FROM, Samples, network, tiny_spec, train_alone
from vpd.config.schema import OptimizerSpec, ScheduleSpec
from vpd.training.loader import micro_batches, plan_batches
from vpd.training.loop import fit
from vpd.training.runs import run_fingerprint
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import locked

OUTPUTS = ["final.safetensors", "fingerprint.json", "half.safetensors", "history.csv", "manifest.json", "timing.json"]
CONTENT = ["final.safetensors", "half.safetensors", "history.csv"]
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["training_fakes", "vpd.training.loop"])


def run(where: Path, spec=None, dataset=None, model=None, observers=(), made_from=MADE_FROM):
    """Train the tiny network into ``where``/out with its state in ``where``/state."""
    spec, dataset, model = spec or tiny_spec(), dataset or Samples(), model or network()
    return fit(model, dataset, spec, 0, where / "out", where / "state", made_from, observers)


def start(where: Path, **options) -> multiprocessing.Process:
    """Start a training in a fresh process."""
    where.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=train_alone, args=(where,), kwargs=options)
    process.start()
    return process


def digests(where: Path) -> dict[str, str]:
    """Of everything but the times, which differ."""
    return {path.name: sha256(path) for path in sorted((where / "out").iterdir()) if path.name != "timing.json"}


def history(where: Path) -> list[dict[str, float]]:
    with open(where / "out" / "history.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("uninterrupted")
    run(where)
    return where


class Crash(Exception):
    """Stands for a process that dies between two lines."""


def crash() -> None:
    raise Crash


def crashing(at: int) -> Samples:
    """A dataset that dies at its ``at``-th sample (4 a step)."""
    dataset = Samples()
    dataset.before[at] = crash
    return dataset


def interrupted_run(where: Path, at: int = 4 * 10) -> None:
    """Die in the tenth step: the states of steps 4 and 8 are there."""
    with pytest.raises(Crash):
        run(where, dataset=crashing(at))
    assert [path.name for path in states(where)] == ["step-000000004.pt", "step-000000008.pt"]
    assert not (where / "out").exists()


def states(where: Path) -> list[Path]:
    return sorted((where / "state").glob("*/step-*.pt"))


# ------------------------------------------------------------------------------------------------------ what is computed
def test_a_run_leaves_exactly_the_outputs_and_no_state(uninterrupted):
    assert sorted(path.name for path in (uninterrupted / "out").iterdir()) == OUTPUTS
    assert not (uninterrupted / "state").exists()
    manifest = json.loads((uninterrupted / "out" / "manifest.json").read_text())
    files = {name: sha256(uninterrupted / "out" / name) for name in CONTENT}
    assert manifest == {"schema": 1, "steps": 12, "milestones": {"half": 6, "final": 12}, "files": files}
    assert json.loads((uninterrupted / "out" / "fingerprint.json").read_text()) == asdict(MADE_FROM)
    times = json.loads((uninterrupted / "out" / "timing.json").read_text())
    assert 0 < times["seconds"] < times["ended"] - times["started"] + 1


def test_equal_runs_are_equal_to_the_bit_whatever_the_random_state(uninterrupted, tmp_path):
    model = network()
    torch.manual_seed(99)
    run(tmp_path, model=model)
    assert digests(tmp_path) == digests(uninterrupted)


def test_weights_equal_a_plain_loop(tmp_path):
    """Twelve steps of torch's own AdamW with the rates written out by hand, without dropout and norm.

    (A batch norm leaves the bias before it no gradient but rounding noise, which AdamW would turn into steps.)
    """
    run(tmp_path, model=network(dropout=0.0, norm=False))
    model, dataset = network(dropout=0.0, norm=False), Samples()
    plan = plan_batches(tiny_spec().training, 10, 0)
    optimizer = torch.optim.AdamW(
        [{"params": model.unet.parameters()}, {"params": model.head.parameters()}],
        betas=(0.9, 0.999),
        weight_decay=1e-2,
    )
    losses = []
    for step in range(12):
        rate = 1e-2 * (1 - step / 12) * (1 - (1 - min(step, 3) / 3) * 0.9)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.1 * rate, rate
        samples = [dataset.sample(*position) for position in plan.batch(step)]
        image, label = (torch.stack([sample[name] for sample in samples]) for name in ("image", "label"))
        loss = torch.nn.functional.cross_entropy(model({"image": image}), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained = load_file(tmp_path / "out" / "final.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6)
    rows = history(tmp_path)
    means = [math.fsum(part) / len(part) for part in (losses[:5], losses[5:10], losses[10:])]
    assert [row["step"] for row in rows] == [5, 10, 12]
    assert [row["loss"] for row in rows] == pytest.approx(means, rel=1e-4)
    assert [row["epoch"] for row in rows] == [2.5, 5.0, 6.0]
    # Rates of steps 4, 9 and 11 counted from 0, all after the warm-up.
    assert [row["lr"] for row in rows] == pytest.approx([1e-2 * 8 / 12, 1e-2 * 3 / 12, 1e-2 / 12])
    assert [row["lr_unet"] for row in rows] == pytest.approx([1e-3 * 8 / 12, 1e-3 * 3 / 12, 1e-3 / 12])


def test_a_short_last_batch_counts_its_samples_once(tmp_path):
    """Ten samples, batch 4, accumulate 2: the third batch is 1 + 1, and weighs as a mean of two."""
    for folder, accumulate in (("whole", 1), ("halves", 2)):
        spec = tiny_spec(accumulate=accumulate, drop_last=False, steps=3)
        run(tmp_path / folder, spec, model=network(dropout=0.0, norm=False))
    rows = [history(tmp_path / folder) for folder in ("whole", "halves")]
    assert rows[0][0]["loss"] == pytest.approx(rows[1][0]["loss"], rel=1e-5)


def test_milestones_are_the_weights_after_their_steps(tmp_path, uninterrupted):
    """half of 12 steps is what a run that dies in step 7 has saved after step 6."""
    with pytest.raises(Crash):
        run(tmp_path, tiny_spec(save_every=6), dataset=crashing(4 * 6 + 1))
    state = torch.load(states(tmp_path)[-1], weights_only=True)
    half = load_file(uninterrupted / "out" / "half.safetensors")
    assert state["journal"]["step"] == 6
    assert all(torch.equal(half[name], state["model"][name]) for name in half)
    final = load_file(uninterrupted / "out" / "final.safetensors")
    assert not torch.equal(half["unet.weight"], final["unet.weight"])


def test_bf16_trains_in_fp32_weights(tmp_path):
    AcceleratorState._reset_state()
    run(tmp_path, tiny_spec(precision="bf16"))
    AcceleratorState._reset_state()
    weights = load_file(tmp_path / "out" / "final.safetensors")
    assert weights["unet.weight"].dtype == torch.float32
    assert all(0.1 < row["loss"] < 3 for row in history(tmp_path))


# ---------------------------------------------------------------------------------------------------------------- batches
def test_every_epoch_is_a_new_permutation():
    plan = plan_batches(tiny_spec(batch_size=5).training, 10, 3)
    epochs = [[index for step in (2 * epoch, 2 * epoch + 1) for index, _ in plan.batch(step)] for epoch in range(4)]
    assert all(sorted(order) == list(range(10)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_on_where_one_starts(workers):
    plan = plan_batches(tiny_spec().training, 10, 0)
    straight = list(micro_batches(Samples(), plan, 0, 6, workers=0))
    resumed = list(micro_batches(Samples(), plan, 0, 2, workers)) + list(micro_batches(Samples(), plan, 2, 6, workers))
    assert [batch["id"] for batch in resumed] == [batch["id"] for batch in straight]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(resumed, straight, strict=True))
    assert straight[0]["key"] == [int(name) for name in straight[0]["id"]]


def test_processes_share_each_micro_batch():
    training = tiny_spec(batch_size=8, accumulate=2).training
    whole = plan_batches(training, 17, 0).batch(3)
    shares = [plan_batches(training, 17, 0, rank, 2).shares(3) for rank in (0, 1)]
    assert [len(micro) for share in shares for micro in share] == [2, 2, 2, 2]
    assert sorted(position for share in shares for micro in share for position in micro) == sorted(whole)


@pytest.mark.parametrize(
    ("update", "length", "processes", "sentence"),
    [
        ({}, 3, 1, "training.batch_size is 4 but the dataset has 3 samples"),
        ({"accumulate": 3}, 10, 1, "4 cannot be divided into accumulate 3 x 1 processes"),
        ({"drop_last": False}, 11, 2, "the last batch of an epoch has 3 samples"),
    ],
)
def test_batches_that_cannot_be_made_are_errors(update, length, processes, sentence):
    with pytest.raises(UserError, match=sentence):
        plan_batches(tiny_spec(**update).training, length, 0, 0, processes)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_sentence_with_any_workers(workers, tmp_path):
    dataset = Samples()

    def fail() -> None:
        raise UserError("image 7.jpg is damaged; fetch it again")

    dataset.before[3] = fail
    with pytest.raises(UserError) as caught:
        run(tmp_path, tiny_spec(workers=workers), dataset=dataset)
    assert str(caught.value) == "image 7.jpg is damaged; fetch it again"


# ----------------------------------------------------------------------------------------------------------- interruption
def test_kill_9_changes_nothing(uninterrupted, tmp_path):
    """A real process, killed once its second state is on disk, then run again: the same bits."""
    process = start(tmp_path, delay=0.05)
    while len(states(tmp_path)) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    dataset = Samples()
    run(tmp_path, dataset=dataset)
    assert len(dataset.seen) == 4 * (12 - 8)
    assert digests(tmp_path) == digests(uninterrupted)


@pytest.mark.parametrize("at", [4 * 2, 4 * 5 + 2, 4 * 12])
def test_dying_at_any_step_changes_nothing(uninterrupted, tmp_path, at):
    with pytest.raises(Crash):
        run(tmp_path, dataset=crashing(at))
    run(tmp_path)
    assert digests(tmp_path) == digests(uninterrupted)


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, SystemExit), (signal.SIGUSR1, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
@pytest.mark.parametrize("step", [3, 12])
def test_a_signal_ends_the_step_saves_the_state_and_exits_non_zero(uninterrupted, tmp_path, number, raised, step):
    before = signal.getsignal(number)
    dataset = Samples()
    dataset.before[4 * (step - 1) + 2] = lambda: os.kill(os.getpid(), number)
    with pytest.raises(raised) as caught:
        run(tmp_path, dataset=dataset)
    assert raised is KeyboardInterrupt or caught.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert len(dataset.seen) == 4 * step
    assert states(tmp_path)[-1].name == f"step-{step:09d}.pt"
    assert not (tmp_path / "out").exists()
    rest = Samples()
    run(tmp_path, dataset=rest)
    assert len(rest.seen) == 4 * (12 - step)
    assert digests(tmp_path) == digests(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_loader_workers_too_changes_nothing(uninterrupted, tmp_path, number):
    """As Slurm and a terminal send it: to every process of the group."""
    process = start(tmp_path, delay=0.05, workers=2)
    while len(states(tmp_path)) < 1 and process.is_alive():
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 1}[number]
    saved = torch.load(states(tmp_path)[-1], weights_only=True)["journal"]["step"]
    assert saved < 12
    rest = Samples()
    run(tmp_path, dataset=rest)
    assert len(rest.seen) == 4 * (12 - saved)
    assert digests(tmp_path) == digests(uninterrupted)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_truncated_state_is_reported_and_the_one_before_is_used(uninterrupted, tmp_path, damaged, capsys):
    interrupted_run(tmp_path)
    for path in states(tmp_path)[-damaged:]:
        path.write_bytes(path.read_bytes()[:1000])
    dataset = Samples()
    run(tmp_path, dataset=dataset)
    lines = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(lines) == damaged
    assert "step-000000008.pt is damaged" in lines[0]
    assert len(dataset.seen) == 4 * (12 - {1: 4, 2: 0}[damaged])
    assert digests(tmp_path) == digests(uninterrupted)


def test_a_state_without_its_milestone_is_not_trusted(uninterrupted, tmp_path, capsys):
    interrupted_run(tmp_path)
    next((tmp_path / "state").glob("*/half.safetensors")).unlink()
    run(tmp_path)
    assert "step-000000008.pt is damaged" in capsys.readouterr().err
    assert digests(tmp_path) == digests(uninterrupted)


OTHER = [{"settings": "t"}, {"code": "d"}, {"inputs": {**MADE_FROM.inputs, "data": "e"}}]


@pytest.mark.parametrize("change", OTHER)
def test_other_inputs_do_not_resume_the_state(tmp_path, change, capsys):
    interrupted_run(tmp_path)
    dataset = Samples()
    run(tmp_path, dataset=dataset, made_from=replace(MADE_FROM, **change))
    assert len(dataset.seen) == 4 * 12
    assert "other settings" in capsys.readouterr().err


def test_states_are_read_without_running_what_they_contain(tmp_path):
    interrupted_run(tmp_path)
    torch.save({"journal": Attack(tmp_path / "ran")}, states(tmp_path)[-1])
    run(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_second_process_on_the_same_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vpd.training.loop.locked", functools.partial(locked, wait=0.2))
    with locked(tmp_path / "state"), pytest.raises(UserError, match="another process is already working"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- finished runs
def inputs(where: Path) -> tuple[Path, Path]:
    for name in ("data", "checkpoint"):
        (where / name).mkdir()
        (where / name / "manifest.json").write_text(json.dumps({"name": name}))
    return where / "data", where / "checkpoint"


def test_a_finished_run_returns_at_once_without_torch(tmp_path):
    data, checkpoint = inputs(tmp_path)
    spec = tiny_spec()
    run(tmp_path, spec, made_from=run_fingerprint(spec, 0, data, checkpoint))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    before = digests(tmp_path)
    program = (
        "import sys; from pathlib import Path; from vpd.config.schema import load_spec; from vpd.training import train;"
        "w = Path(sys.argv[1]);"
        "print(train(load_spec(w/'spec.json'), 0, w/'data', w/'checkpoint', w/'out', w/'state'));"
        "print(sorted({'torch', 'accelerate', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["None", "[]"]
    assert digests(tmp_path) == before
    assert not (tmp_path / "state").exists()


# --------------------------------------------------------------------------------------------------------------- failures
class Exploding(type(network())):
    """Its loss is not finite from the eighth forward pass on; counts optimizer steps by what reaches the weights."""

    calls = 0
    value = float("nan")

    def forward(self, batch: dict) -> torch.Tensor:
        self.calls += 1
        return super().forward(batch) * (self.value if self.calls >= 8 else 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt(tmp_path, value):
    torch.manual_seed(7)
    model = Exploding()
    model.value = value
    sentence = r"tiny seed 0: the loss of step 8 is (nan|inf); lower training.optimizer.lr \(now 0.01\)"
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, model=model)
    assert not (tmp_path / "out").exists()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    spec = tiny_spec(
        steps=1,
        optimizer=OptimizerSpec(lr=1e38, betas=(0.9, 0.999), weight_decay=1e30),
        schedule=ScheduleSpec(kind="constant"),
    )
    with pytest.raises(UserError, match="is not finite after step 1"):
        run(tmp_path, spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("megabytes", [0.001, 0.004])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing_half_written(tmp_path, megabytes):
    """The kernel refuses to let any file grow beyond the limit: first the milestone or the state, then the output."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*; free some space") as caught:
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in (
        [".state.lock"],
        [".state.lock", "half.safetensors"],
    )
    run(tmp_path)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS


# -------------------------------------------------------------------------------------------------------------- observers
def test_observers_get_every_logged_step(tmp_path):
    seen = []
    run(tmp_path, observers=[lambda step, values: seen.append((step, values))])
    rows = history(tmp_path)
    assert [step for step, _ in seen] == [5, 10, 12]
    for (_, values), row in zip(seen, rows, strict=True):
        assert values == pytest.approx({name: row[name] for name in ("epoch", "loss", "lr", "lr_unet")}, rel=1e-6)
