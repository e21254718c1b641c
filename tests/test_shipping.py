"""Weights for git: what their manifests and their model card say of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vpd.config.params import Params, load_params
from vpd.config.paths import WEIGHTS, Paths
from vpd.stages import shipping
from vpd.stages.demo import NETWORKS
from vpd.stages.keys import is_current, pretrained_here
from vpd.utils.errors import UserError
from vpd.utils.files import write_json, write_text

ROOT = Path(__file__).parent.parent
NAMES = ("sd-1-1", "sd-1-5")
LINES = """images,thing,room,frechet,class_auc_8,class_auc,word_auc,text_matters
sd-1-1,0.1234,0.5,3.25,0.61,0.62,0.63,0.71
sd-1-5,0.8,0.9,0.5,0.71,0.72,0.73,0.81
real images,0.95,0.96,0.01,,,,
"""


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml", "smoke")


@pytest.fixture
def paths(params, tmp_path, monkeypatch) -> Paths:
    """A finished pre-training with two milestones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipping, "is_current", lambda *_: True)
    monkeypatch.setattr(shipping, "pretrained_here", lambda _: list(NAMES))
    paths = Paths("smoke")
    facts = {"parameters": {"unet": 2_000_000}, "reconstruction_psnr": 23.0, "matching_accuracy": 0.5}
    write_json(paths.pretraining / "manifest.json", {"schema": 1, **facts, "files": {}})
    for name in ("measures.csv", "drawn.png"):
        write_text(paths.measures / name, LINES)
    for name in NAMES:
        write_json(paths.checkpoint(name) / "unet/config.json", {})
    return paths


def test_measures_go_with_the_weights_and_onto_the_card(params, paths):
    assert shipping.ship_weights(params, paths) == list(NAMES)
    root = WEIGHTS / "smoke"
    assert {path.name for path in root.iterdir() if path.is_file()} == {"README.md", "drawn.png", "measures.csv"}
    assert (root / "measures.csv").read_text() == LINES
    card = (root / "README.md").read_text()
    assert "| sd-1-1 | 0.12 | 0.50 | 3.25 | 0.62 | 0.63 | 0.71 |\n| sd-1-5 | 0.80 |" in card
    assert "| real images | 0.95 | 0.96 | 0.01 |  |  |  |" in card
    assert "| sd-1-5 | denoising | 20 | 2.0 M | below |" in card
    assert "Measured on 6 scenes" in card


def test_one_network_joins_those_that_are_there(params, paths):
    shipping.ship_one("sd-1-5", params, paths)
    card = WEIGHTS / "smoke/README.md"
    assert "| sd-1-5 |" in card.read_text()
    assert "| sd-1-1 |" not in card.read_text()
    shipping.ship_one("sd-1-1", params, paths)
    assert [line.split()[1] for line in card.read_text().splitlines() if line.startswith("| sd-")] == list(NAMES)
    assert (WEIGHTS / "smoke/sd-1-1/manifest.json").is_file()


def test_a_scale_without_measures_ships_none_and_keeps_no_old_ones(params, paths):
    shipping.ship_weights(params, paths)
    scales = {"smoke": params.block.model_copy(update={"measures": None})}
    shipping.ship_weights(Params(params.document.model_copy(update={"scales": scales}), params.source), paths)
    assert "have learnt" not in (WEIGHTS / "smoke/README.md").read_text()
    assert [path.name for path in (WEIGHTS / "smoke").iterdir() if path.is_file()] == ["README.md"]


def test_measures_that_are_not_current_are_not_shipped(params, paths, monkeypatch):
    monkeypatch.setattr(shipping, "is_current", lambda stage, *_: stage != "measure")
    with pytest.raises(
        UserError,
        match=r"results/smoke/measures is not what params\.yaml asks for; run `vpd measure --scale smoke` first",
    ):
        shipping.ship_weights(params, paths)


def test_what_is_measured_is_no_part_of_the_recipe(params):
    scales = {"smoke": params.block.model_copy(update={"measures": None})}
    without = Params(params.document.model_copy(update={"scales": scales}), params.source)
    assert without.recipe("sd-1-1") == params.recipe("sd-1-1")


@pytest.mark.parametrize(("scale", "nothing_to_ship"), [("mini", True), ("smoke", False)])
def test_only_who_pre_trains_has_something_to_ship(tmp_path, scale, nothing_to_ship):
    """In a new clone, where DVC finds the record of ``mini`` in git and does not run the stage."""
    given, paths = load_params(ROOT / "params.yaml", scale), Paths(scale, tmp_path)
    write_json(paths.measures / "manifest.json", {"files": {}})
    for name in pretrained_here(given):
        write_json(paths.checkpoint(name) / "manifest.json", {"files": {}})
    assert is_current("ship", "", given, paths) == nothing_to_ship


@pytest.mark.parametrize("name", NETWORKS)
def test_the_trained_networks_in_git_are_those_of_the_recorded_run(name):
    shipped, recorded = (
        json.loads((ROOT / path).read_text())
        for path in (f"weights/mini/{name}/manifest.json", f"results/mini/provenance/{name}.json")
    )
    assert shipped["trained"] == recorded["runs"][f"seed{shipped['seed']}"]["files"]["final.safetensors"]
