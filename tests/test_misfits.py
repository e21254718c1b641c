"""Weights of every kind of source, damaged in every way: refused in one sentence before anything runs, never drawn at random."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbone_repositories import small, write_bert, write_timm, write_transformers
from fixtures.parity.narrow import write_factor_4
from vpd.config.params import load_params
from vpd.config.schema import BackboneSpec
from vpd.models.base import misfits
from vpd.predict.network import _check_checkpoint
from vpd.pretrained.backbones import fetch_backbone
from vpd.pretrained.stable_diffusion import FAMILIES, check_network
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import Fingerprint, check_intact, write_manifest

State = dict[str, Tensor]
WEIGHT_FILES = FAMILIES["stable-diffusion-1"].weights
KINDS = {
    "missing": None,
    "nan": lambda x: torch.full_like(x, torch.nan),
    "infinite": lambda x: torch.full_like(x, -torch.inf),
    "too large for single precision": lambda x: torch.full(x.shape, 1e300, dtype=torch.float64),
    "twice as long": lambda x: torch.cat([x, x]),
    "cut": lambda x: x[:-1],
    "one more axis": lambda x: x[None],
    "scalar": lambda x: x.sum(),
    "integer": lambda x: x.long(),
    "bytes": lambda x: x.to(torch.uint8),
    "bool": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64),
    "quantised": lambda x: x.to(torch.float8_e4m3fn),
}
WHOLE: dict[str, Callable[[State], State]] = {
    "prefix module.": lambda state: {f"module.{name}": x for name, x in state.items()},
    "prefix of one letter": lambda state: {f"x{name}": x for name, x in state.items()},
    "half under a prefix": lambda state: {f"model.{n}" if i % 2 else n: x for i, (n, x) in enumerate(state.items())},
    "nothing of it": lambda _: {"weight": torch.zeros(2)},
    "all integers": lambda state: {name: x.long() for name, x in state.items()},
    "one more": lambda state: {**state, "lora.weight": torch.zeros(2)},
}


def damaged(name: str, kind: str) -> Callable[[State], State]:
    """One tensor of a state changed or removed."""
    change = KINDS[kind]

    def apply(state: State) -> State:
        others = {other: x for other, x in state.items() if other != name}
        return others if change is None else others | {name: change(state[name])}

    return apply


def write(path: Path, state: State) -> None:
    path.unlink()
    save_file({name: x.clone().contiguous() for name, x in state.items()}, path, {"format": "pt"})


def refused(load: Callable[[], object], kind: str) -> None:
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value), kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "missing"])
def test_a_tensor_is_compared_by_shape_type_and_finiteness(kind):
    own = {"a": torch.ones(2, 3), "steps": torch.tensor(7)}
    assert misfits(own, {"a": torch.ones(2, 3, dtype=torch.float16), "steps": torch.tensor(1)}) == ""
    assert "first 'a'" in misfits(own, damaged("a", kind)(own))


def test_a_counter_is_no_weight():
    assert "1 of another type, first 'n' torch.float32" in misfits({"n": torch.tensor(1)}, {"n": torch.tensor(1.0)})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return write_factor_4(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_every_network_of_a_pipeline_folder(pipeline, tmp_path, file):
    """Also of a folder without a manifest that is named to ``vpd predict``."""
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    part, state = file.split("/")[0], load_file(pipeline / file)
    _check_checkpoint(folder, reads_text=True)
    for name in list(state)[:: len(state) // 2]:
        for kind in KINDS:
            write(folder / file, damaged(name, kind)(state))
            refused(lambda: check_network(folder, part), kind)
    for kind, change in WHOLE.items():
        write(folder / file, change(state))
        refused(lambda: _check_checkpoint(folder, reads_text=True), kind)
    write(folder / file, {name: x.half() for name, x in state.items()})
    _check_checkpoint(folder, reads_text=True)


PAPER = load_params("params.yaml", "paper")
REPOSITORIES = ("swin-l", "convnext-l", "mae-vit-l", "beitv2-vit-l", "sam", "blip", "swin-b-bert")


@pytest.mark.parametrize("name", REPOSITORIES)
def test_every_network_of_a_backbones_repository(tmp_path, name):
    given = PAPER.backbone(name).model_dump()
    given["vision"]["options"] |= small(given["vision"]["architecture"])
    folder, vision = tmp_path / "copy", given["vision"]
    if vision["library"] == "timm":
        write_timm(folder, vision["architecture"], given["repo"], vision["options"], 0)
    else:
        write_transformers(folder, vision["architecture"], vision["options"])
    given |= {"source": "folder", "path": str(folder)}
    file = folder / "model.safetensors"
    if given["language"]:
        write_bert(tmp_path / "bert")
        given["language"] |= {"repo": str(tmp_path / "bert"), "options": {}}
        file = tmp_path / "bert/model.safetensors"
    state, out = load_file(file), tmp_path / "out"
    beginning = {"sam": "vision_encoder.", "blip": "vision_model.", "swin-b-bert": "bert.encoder."}.get(name, "")
    used = [key for key in state if key.startswith(beginning) and "head" not in key]
    for kind, change in {**{kind: damaged(used[-1], kind) for kind in KINDS}, **WHOLE}.items():
        if kind == "one more" and beginning:  # other parts of the model, which are not used
            continue
        write(file, change(state))
        refused(lambda: fetch_backbone(name, BackboneSpec.model_validate(given), out), kind)
        assert not out.exists()


@pytest.mark.parametrize("file", [*WEIGHT_FILES, "unet/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_checkpoint_changed_in_place_is_not_used(pipeline, tmp_path, file, how):
    folder = shutil.copytree(pipeline, tmp_path / "sd-1-5")
    write_manifest(folder, Fingerprint("settings", "code"), {})
    _check_checkpoint(folder, reads_text=True)
    if how == "removed":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:-1] + b" ")
    for check in (lambda: _check_checkpoint(folder, False), lambda: check_intact(folder, "checkpoint")):
        with pytest.raises(
            UserError, match=rf"{file} was {how} after manifest\.json.* run `vpd checkpoint sd-1-5 --scale"
        ):
            check()
