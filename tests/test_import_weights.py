"""The authors' released files become runs that evaluation takes, and compute what the authors' code computes."""

import argparse
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fixtures.parity.case import CLASSES, FORWARD, SPECS, TASKS, GivenTokens, error, given_batch, released_state
from fixtures.parity.narrow import FOLDER, make_spec, write_checkpoint
from real_archives import Attack
from vpd.config.paths import evaluated
from vpd.config.schema import DatasetSpec, released_spec
from vpd.evaluation.results import check_run, read_metrics
from vpd.evaluation.run import evaluate, load_run
from vpd.models import build_model
from vpd.pretrained.original import convert
from vpd.pretrained.released import (
    adopt,
    embedding_agreement,
    import_weights,
    publish_run,
    read_released,
)
from vpd.stages.data import prepare_dataset
from vpd.training.runs import COLUMNS, gather, run_fingerprint
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import write_json

RULED_OUT = "post_quant_conv"


def stored(task: str, state: dict[str, Tensor]) -> dict:
    """The state dict in the container that the authors' training program writes."""
    buffers = {
        f"encoder_vq.{RULED_OUT}.weight": torch.zeros(4, 4, 1, 1),
        f"encoder_vq.{RULED_OUT}.bias": torch.zeros(4),
    }
    if task == "seg":
        meta = {"iter": 80000, "env_info": "Python 3.8", "CLASSES": ("wall",), "PALETTE": [[1, 2, 3]]}
        schedule = {"sd_model.betas": torch.zeros(1000)}
        return {"meta": meta, "state_dict": state | buffers | schedule, "optimizer": {"state": {}, "param_groups": []}}
    if task == "refer":
        args = argparse.Namespace(lr=5e-5, epochs=40, dataset="refcoco", device="cuda")
        return {"model": state | buffers, "optimizer": {"state": {}}, "epoch": 39, "args": args, "lr_scheduler": {}}
    prefixed = {f"encoder.{name}": tensor for name, tensor in buffers.items()}
    return {"model": {f"module.{name}": tensor for name, tensor in (state | prefixed).items()}}


class Released:
    """One task's released file at the fixtures' width, the checkpoint that it was made from, and where to import to."""

    def __init__(self, task: str, folder: Path, checkpoint: Path) -> None:
        self.task, self.folder, self.checkpoint = task, folder, checkpoint
        self.state = released_state(json.loads((FOLDER / f"{task}.json").read_text())["parameters"])
        self.spec = make_spec(TASKS[task], **SPECS[task])
        self.classes = [f"class {i}" for i in range(CLASSES[task])]
        self.data, self.runs, self.file = folder / "data", folder / "runs", folder / f"{task}.pth"
        write_json(self.data / "manifest.json", {})
        torch.save(stored(task, self.state), self.file)

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return build_model(self.spec, self.checkpoint, self.classes)

    def run(self, file: Path | None = None, task: str | None = None) -> dict:
        """What ``import_weights`` does, with a network that is not read from a dataset's classes."""
        file, spec = file or self.file, released_spec(self.spec)
        state = read_released(file, task or spec.task)
        model = self.model()
        facts = adopt(model, state, file, self.classes)
        publish_run(spec, model, self.data, self.checkpoint, self.runs)
        return facts

    def change(self, **changes: Tensor | None) -> Path:
        """Another file, with tensors replaced or (None) removed."""
        state = {name: tensor for name, tensor in (self.state | changes).items() if tensor is not None}
        torch.save(stored(self.task, state), path := self.folder / "changed.pth")
        return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """By task, a checkpoint whose VAE is the fixtures', as the authors' was Stable Diffusion's."""
    wide = {"unet": (32, 64, 128, 128), "vae": (32, 64, 128, 128), "layers": 2, "heads": 8, "groups": 32}
    first = write_checkpoint(tmp_path_factory.mktemp("narrow"), **wide, length=77)
    write_json(first / "manifest.json", {})
    # The recipe draws a tensor by its name, and depth's names begin with "encoder.".
    return {task: with_vae(task, first, tmp_path_factory.mktemp(task)) for task in TASKS}


def with_vae(task: str, checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    given = convert(released_state(json.loads((FOLDER / f"{task}.json").read_text())["parameters"]))
    frozen = {name.removeprefix("vae."): tensor for name, tensor in given.items() if name.startswith("vae.")}
    save_file(load_file(weights) | {name: tensor.contiguous() for name, tensor in frozen.items()}, weights)
    return folder


@pytest.fixture(params=TASKS)
def released(request, tmp_path, checkpoints) -> Released:
    return Released(request.param, tmp_path, checkpoints[request.param])


@pytest.fixture
def refer(tmp_path, checkpoints) -> Released:
    return Released("refer", tmp_path, checkpoints["refer"])


def test_imported_run_is_accepted_and_computes_what_the_authors_code_computes(released):
    facts = released.run()
    spec, out = released_spec(released.spec), released.runs / "seed0"
    check_run(out, run_fingerprint(spec, 0, released.data, released.checkpoint), "any")
    assert (out / "history.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert facts["vae_difference"] == 0

    model = released.model()
    assert load_run(model, out, "final") == spec.training.steps
    if released.task == "refer":
        model.text = GivenTokens()
    with torch.no_grad():
        output = model(given_batch(released.task))
    name, step = {"seg": ("logits", 1), "refer": ("logits", 4), "depth": ("depth", 4)}[released.task]
    expected = load_file(FOLDER / f"{released.task}.safetensors")[name]
    assert error(output[:, :, ::step, ::step], expected) < FORWARD


def test_imported_weights_are_evaluated(tmp_path, checkpoints):
    released = Released("refer", tmp_path, checkpoints["refer"])
    shutil.rmtree(released.data)
    drawn = DatasetSpec(
        format="refcoco", source="synthetic", images={"train": 2, "val": 2, "testA": 2, "testB": 2}, size=(80, 64)
    )
    prepare_dataset("refcoco", drawn, released.data)
    spec = released.spec.model_copy(update={"variant": "refcoco", "dataset": "refcoco", "seeds": (0, 1)})
    facts = import_weights(spec, released.file, released.data, released.checkpoint, released.runs)
    assert (facts["file"], facts["sha256"]) == (released.file.name, sha256(released.file))
    gather(released.runs, released_spec(spec).seeds, tmp_path / "history.csv")
    out = evaluated(tmp_path / "results", spec.name)
    evaluate(released_spec(spec), released.runs, released.data, released.checkpoint, out, tmp_path / "state")
    results = read_metrics(out.metrics)
    assert [(r["seed"], r["milestone"], r["step"]) for r in results] == [(0, "final", spec.training.steps)]
    assert 0 <= results[0]["metrics"]["oiou"] <= 100


def test_the_files_class_embeddings_are_taken(tmp_path, checkpoints):
    released = Released("seg", tmp_path, checkpoints["seg"])
    facts = released.run()
    weights = load_file(released.runs / "seed0/final.safetensors")
    assert torch.equal(weights["class_embeddings"], released.state["class_embeddings"])
    own = released.model().class_embeddings
    expected = [
        torch.dot(a, b).item() / (a.norm() * b.norm()).item()
        for a, b in zip(released.state["class_embeddings"], own, strict=True)
    ]
    agreement = facts["class_embeddings"]
    assert agreement["mean"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert agreement["worst"] == pytest.approx(min(expected), abs=1e-5)
    assert agreement["by_class"][agreement["worst_class"]] == agreement["worst"]


def test_another_order_of_classes_shows():
    own = torch.eye(4)[:, :3] + 0.1
    agreement = embedding_agreement(own[[1, 0, 2, 3]] * 2, own, ["a", "b", "c", "d"])
    assert agreement["in_order"] == 2
    assert agreement["by_class"]["c"] == pytest.approx(1, abs=1e-6)
    assert agreement["by_class"]["a"] < 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": None}, r"changed\.pth does not fit .*\(1 missing, first 'adapter\.gamma'\)"),
        ({"classifier.conv9": torch.zeros(2)}, r"changed\.pth: 1 tensors have names .* first 'classifier\.conv9'"),
        ({"text_adapter.fc.2.more": torch.zeros(2)}, r"does not fit .*\(1 unexpected, first 'adapter\.fc\.2\.more'\)"),
        ({"gamma": torch.zeros(5)}, r"1 of another shape, first 'adapter\.gamma' \(5,\) instead of \(32,\)"),
        (
            {"encoder_vq.encoder.conv_in.weight": torch.ones(32, 3, 3, 3)},
            r"made with another VAE than the checkpoint's",
        ),
    ],
)
def test_file_that_does_not_fit_is_refused_in_one_sentence(refer, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        refer.run(refer.change(**changes))
    assert "\n" not in str(caught.value)
    assert not refer.runs.exists()
    with pytest.raises(UserError, match=r"refer\.pth holds a referring model, but the experiment is depth"):
        refer.run(task="depth")


class EvilNamespace(argparse.Namespace):
    def __reduce__(self):
        return (eval, ("print('ran')",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(refer, tmp_path, zipped):
    file = tmp_path / "evil.pth"
    torch.save({"model": refer.state, "args": Attack(tmp_path / "ran")}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth .*was not loaded, because .*run code") as caught:
        refer.run(file)
    assert "\n" not in str(caught.value)
    torch.save({"model": refer.state, "args": EvilNamespace()}, file)
    with pytest.raises(UserError, match=r"asks to call builtins\.eval, which weights do not need"):
        refer.run(file)
    with open(file, "wb") as stream:
        pickle.dump({"args": EvilNamespace()}, stream)
    with pytest.raises(UserError, match=r"evil\.pth"):
        refer.run(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_cut_off_file_is_named(refer, share):
    content = refer.file.read_bytes()
    refer.file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"refer\.pth is (damaged or cut off|no file of plain tensors)") as caught:
        refer.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "model": {}}, r"x\.pth has no tensors under state_dict or model \(it holds epoch, model\)"),
        ([1, 2], r"x\.pth holds a list, not weights by name"),
    ],
)
def test_files_without_weights_are_named(refer, tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        refer.run(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        refer.run(tmp_path / "absent.pth")
