"""The stage that measures checkpoints: its output, its resumption, and prompts that it refuses."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pretraining_fakes import MEASURES, SPEC, Stopped, digests, draw_captions, kill_at, watched
from vpd.config.schema import CheckpointSpec
from vpd.measures.drawing import check_prompts, image_size
from vpd.measures.results import CHANCE, DECODED, REAL, measure_nothing, measures_fingerprint
from vpd.measures.run import measure
from vpd.pretrained.checkpoints import assemble
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.fingerprint import is_finished


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    pretrain(SPEC, draw_captions(root / "data"), root / "pretraining", root / "state")
    for name in SPEC.milestones:
        assemble(name, CheckpointSpec(source="pretrained"), root / "pretraining", root / name)
    return {name: root / name for name in SPEC.milestones}


@pytest.fixture(scope="module")
def measured(checkpoints, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measures")
    measure(MEASURES, checkpoints, folder / "out", folder / "state")
    assert not (folder / "state").exists()
    return folder / "out"


def test_every_checkpoint_and_its_bounds_are_measured(measured):
    lines = {line.pop("images"): line for line in csv.DictReader((measured / "measures.csv").read_text().splitlines())}
    assert list(lines) == ["sd-a", "sd-b", REAL, DECODED, CHANCE]
    forms = [f"{form}_auc{level}" for form in ("class", "word") for level in ("", "_16", "_8", "_4")]
    judged = ["thing", "room", "frechet"]
    assert sorted(lines["sd-b"]) == sorted([*judged, *forms, "text_matters", "extra_cost_100", "extra_cost_400"])
    assert [key for key, value in lines[REAL].items() if value] == judged
    shares = [float(value) for key, value in lines["sd-b"].items() if not key.startswith(("extra", "frechet"))]
    assert all(0 <= value <= 1 for value in shares)
    assert set(read_json(measured / "manifest.json")["files"]) == {"measures.csv", "drawn.png", "history.csv"}
    assert min(Image.open(measured / "drawn.png").size) > 100


def test_images_have_the_size_that_the_checkpoint_was_trained_on(checkpoints):
    assert image_size(checkpoints["sd-a"]) == (32, 32)


@pytest.mark.slow
def test_killed_measures_end_with_the_bits_of_uninterrupted_ones(checkpoints, measured, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    kill_at("measures.oracle", 3, measure, MEASURES, checkpoints, out, state, save_every=2)
    kill_at("drawing with sd-b", 5, measure, MEASURES, checkpoints, out, state, save_every=2)
    kill_at("samples of sd-b", 1, measure, MEASURES, checkpoints, out, state, save_every=2)
    assert not out.exists()
    with watched() as after:
        measure(MEASURES, checkpoints, out, state, save_every=2)
    assert after == [
        ("samples of sd-a", 1),
        ("samples of sd-b", 1),
    ]  # the oracle and both checkpoints' measures are kept
    assert digests(out) == digests(measured)
    assert not state.exists()
    with watched() as again:
        measure(MEASURES, checkpoints, out, state)
    assert again == []


@pytest.mark.parametrize("change", ["settings", "checkpoint", "output"])
def test_measures_are_made_again_when_what_they_are_made_from_or_they_change(checkpoints, measured, tmp_path, change):
    out, spec, own = shutil.copytree(measured, tmp_path / "out"), MEASURES, dict(checkpoints)
    if change == "settings":
        spec = MEASURES.model_copy(update={"guidance": 1.0})
    elif change == "checkpoint":
        own["sd-a"] = shutil.copytree(checkpoints["sd-a"], tmp_path / "sd-a")
        (own["sd-a"] / "manifest.json").write_text('{"schema": 1, "files": {}}')
    else:
        (out / "measures.csv").write_text("images")
    with pytest.raises(Stopped), watched("measures.oracle", 1):
        measure(spec, own, out, tmp_path / "state")


def test_without_settings_nothing_is_measured(tmp_path):
    measure_nothing(tmp_path / "out")
    assert read_json(tmp_path / "out/manifest.json")["files"] == {}
    assert is_finished(tmp_path / "out", measures_fingerprint(None, {"sd-a": tmp_path / "absent"}))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a red zebra", r"'a red zebra' has words that the vocabulary of .*sd-a lacks \(zebra\); use words of the captions"),
        ("a Zebra of a ball, a dragon", r"lacks \(zebra, dragon\)"),
        ("zebra zebra ball", r"lacks \(zebra\)"),
        ("a red café", r"lacks \(café\)"),
        ("你好", "lacks"),
        ("a ball 🙂", r"lacks \(🙂\)"),
        ("<|endoftext|> ball", r"lacks \(.*endoftext"),
        ("", "has an empty prompt; say what to draw"),
        (" \n", "has an empty prompt"),
        ("a red ball a red ball a red ball a red ball", "has 12 words, but .*sd-a reads 10; shorten it"),
    ],
)  # fmt: skip
def test_prompts_that_a_checkpoint_cannot_read_are_one_sentence(checkpoints, tmp_path, prompt, sentence):
    spec = MEASURES.model_copy(update={"sample_prompts": ("a red ball", prompt)})
    with pytest.raises(UserError, match=rf"^measures\.sample_prompts.*{sentence}") as caught:
        measure(spec, checkpoints, tmp_path / "out", tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["a red ball", "A photo of a BLUE box", "green box a ball"])
def test_known_words_are_read_in_any_case_and_order(checkpoints, prompt):
    check_prompts([prompt], checkpoints["sd-b"], "prompt")
