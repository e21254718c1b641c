"""Weights for git: what their manifests and their model card say of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from vpd.config.params import Params, load_params
from vpd.config.paths import WEIGHTS, Paths
from vpd.pretrained.shipped import shipped_facts
from vpd.stages import shipping
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
    measures = {name: {"thing": 0.1 * index} for index, name in enumerate(NAMES)}
    facts = {
        "parameters": {"unet": 2_000_000},
        "reconstruction_psnr": 23.0,
        "matching_accuracy": 0.5,
        "measures": measures,
    }
    write_json(paths.pretraining / "manifest.json", {"schema": 1, **facts, "files": {}})
    for name in (*shipping.PICTURES, shipping.MEASURES):
        write_text(paths.pretraining / name, LINES)
    for name in NAMES:
        write_json(paths.checkpoint(name) / "unet/config.json", {})
    return paths


def test_measures_go_with_the_weights_and_onto_the_card(params, paths):
    assert shipping.ship_weights(params, paths) == list(NAMES)
    root = WEIGHTS / "smoke"
    assert shipped_facts(root / "sd-1-5")["measures"] == {"thing": 0.1}
    assert {path.name for path in root.iterdir() if path.is_file()} == {
        "README.md",
        "samples.png",
        "drawn.png",
        "measures.csv",
    }
    card = (root / "README.md").read_text()
    assert "| sd-1-1 | 0.12 | 0.50 | 3.25 | 0.62 | 0.63 | 0.71 |\n| sd-1-5 | 0.80 |" in card
    assert "| real images | 0.95 | 0.96 | 0.01 |  |  |  |" in card
    assert "| sd-1-5 | denoising | 20 | 2.0 M | below |" in card
    assert "Measured on 6 scenes" in card


def test_a_card_without_measures_has_no_table_of_them(params, paths):
    scale = params.document.scales["smoke"]
    pretraining = scale.pretraining.model_copy(update={"measures": None})
    scales = {**params.document.scales, "smoke": scale.model_copy(update={"pretraining": pretraining})}
    params = Params(params.document.model_copy(update={"scales": scales}), params.source)
    shipping.ship_weights(params, paths)
    assert "have learnt" not in (WEIGHTS / "smoke/README.md").read_text()
    assert "measures" not in shipped_facts(WEIGHTS / "smoke/sd-1-5")


def test_what_is_measured_is_no_part_of_the_recipe(params):
    assert "measures" not in params.recipe("sd-1-1")["pretraining"]
    assert "denoiser" in params.recipe("sd-1-1")["pretraining"]
