"""``vpd demo``: what it reads in a prompt, where it says that words look, and how it ends on mistakes.

`test_reproduce.py` runs the command with shipped weights.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vpd.cli import main
from vpd.config.params import load_params
from vpd.config.paths import Paths, shipped
from vpd.datasets.dataset import image_tensor
from vpd.datasets.transforms import normalise
from vpd.measures.pointing import CLASSES, area_under_curve, pointing
from vpd.measures.scenes import CAPTIONS, Scenes
from vpd.models.diffusion import load_vae
from vpd.models.text import load_text_encoder
from vpd.predict import demo
from vpd.predict.predictions import DepthMap, ReferredObject, Segments
from vpd.predict.prompt import Prompt, read_prompt
from vpd.pretraining.clip import train_tokenizer
from vpd.stages.predict import find_parts, trained_parts
from vpd.utils.digests import digests, tree
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json, write_text
from vpd.world.rooms import KINDS
from vpd.world.scene import draw_scene

ROOT = Path(__file__).parent.parent


# --------------------------------------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize(
    ("text", "classes", "expression", "room"),
    [
        ("a living room with a lamp and a red ball", ["lamp", "ball"], "the red ball", "living_room"),
        ("A  Green\tSOFA,a lamp", ["sofa", "lamp"], "the green sofa", None),
        ("a lamp on the wall", ["lamp", "wall"], "the lamp", None),
        ("a ball, a red ball in an office", ["ball"], "the red ball", "office"),
        ("orange wall with lamp", ["wall", "lamp"], "the lamp", None),
        ("ball", ["ball"], "the ball", None),
    ],
)
def test_a_prompt_names_classes_a_thing_and_a_room(text, classes, expression, room):
    assert read_prompt(text) == Prompt(text, classes, expression, room)


@pytest.mark.parametrize("kind", KINDS)
def test_every_room_can_be_named(kind):
    assert read_prompt(f"a {kind.replace('_', ' ')} with a ball").room == kind


@pytest.mark.parametrize("text", ["an office", "a wall with a window", "balls", "", " "])
def test_a_prompt_must_name_a_thing(text):
    with pytest.raises(UserError, match="names nothing that could be found in a room; name one of table, chair"):
        read_prompt(text)


# ------------------------------------------------------------------------------------------------------------------ maps
@pytest.fixture
def room():
    """A drawn scene that shows its prompt's classes."""
    scene = draw_scene(28, 64, 64)
    text = "a green bed, a wall"
    return scene, read_prompt(text)


def test_words_look_where_pointing_says(checkpoint, room, tmp_path):
    """The area under the curve of each map is the one that the measures of the pre-training report for its form."""
    scene, prompt = room
    checkpoint = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    length = {"model_max_length": load_text_encoder(checkpoint, 1).model.config.max_position_embeddings}
    config = checkpoint / "tokenizer/tokenizer_config.json"
    write_json(config, read_json(config) | length)
    labels = torch.from_numpy(scene.picture.labels.astype(np.uint8))
    labels[~torch.isin(labels, torch.tensor([CLASSES.index(name) + 1 for name in prompt.classes]))] = 0
    image, nothing = scene.picture.image, torch.zeros(1)
    scenes = Scenes(
        image_tensor(image)[None], labels[None], nothing, nothing, nothing, [""], [[prompt.text] * CAPTIONS]
    )
    vae = load_vae(checkpoint)
    latents = vae.encode(image_tensor(normalise(image))[None]).latent_dist.mean.detach() * vae.config.scaling_factor
    scores = pointing(checkpoint, latents, scenes, 1, torch.device("cpu"))
    assert {form.split("_")[0] for form in scores} == {"class", "word"}
    assert len(scores) > 4
    for form, score in scores.items():
        maps = demo.word_maps(checkpoint, image, prompt, form, 1)
        areas = [
            area_under_curve(heat.flatten()[None].numpy(), (labels == CLASSES.index(name) + 1).flatten().numpy())
            for name, heat in maps.items()
        ]
        assert np.mean(areas) == pytest.approx(score, abs=1e-4), form


def test_the_form_that_points_best_is_shown():
    measures = {"class_auc": 0.6, "class_auc_8": 0.7, "word_auc": 0.65, "word_auc_4": 0.69}
    assert demo.sharpest(measures) == "class_auc_8"
    assert demo.sharpest(measures | {"word_auc": 0.8}) == "word_auc"
    assert demo.sharpest({}) == "word_auc"


# --------------------------------------------------------------------------------------------------------------- picture
@pytest.mark.parametrize("words", [1, 3, 6])
def test_the_picture_has_a_cell_for_each_map_and_prediction(room, words):
    scene, prompt = room
    shape = scene.picture.labels.shape
    found = [
        Segments(scene.picture.image, scene.picture.labels.astype(np.uint8), [f"class {n}" for n in range(20)]),
        ReferredObject(scene.picture.image, np.zeros(shape, bool), np.zeros(shape), prompt.expression),
        DepthMap(scene.picture.image, scene.picture.depth.astype(np.float32), "bedroom"),
    ]
    maps = {name: torch.rand(shape) for name in CLASSES[:words]}
    figure = demo.compose(scene.picture.image, maps, found, prompt.text)
    titles = [[axes.get_title() for axes in row] for row in figure.cells]
    assert titles[0] == ["drawn from the prompt", *(f"where “{name}” looks" for name in maps)]
    assert titles[1] == ["segmentation", "", "“the green bed”", "depth in m, bedroom"]
    assert [text.get_text() for text in figure.cells[1][2].texts] == ["nothing found"]
    boxes = [axes.get_window_extent() for axes in figure.figure.axes]
    assert all(box.x1 < figure.figure.bbox.x1 and box.y1 < figure.figure.bbox.y1 for box in boxes)
    sides = {round(float(side), 3) for box in boxes[:-1] for side in (box.width, box.height)}
    assert len(sides) == 1
    assert len(figure.cells[1][1].get_legend().get_texts()) <= 10


# -------------------------------------------------------------------------------------------------------------- mistakes
@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone whose weights in git are placeholders with manifests, but for a tokenizer."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    params = load_params(Path("params.yaml"), "smoke")
    for name in ("sd-1-5", "seg-full", "refcoco-full", "depth-full"):
        folder = tmp_path / "weights/smoke" / name
        for part in ("spec.json", "final.safetensors"):
            write_json(folder / part, {})
        if name == "sd-1-5":
            train_tokenizer(["a red ball in an office"] * 4, 600, 8).save_pretrained(folder / "tokenizer")
        files = digests(folder, tree(folder))
        recipe = {} if name == "sd-1-5" else params.resolve(name).model_dump(mode="json")
        write_json(folder / "manifest.json", {"schema": 1, "recipe": recipe, "files": files})
    return tmp_path


def test_networks_in_git_are_used_unless_weights_are_here(clone):
    """Specs of recorded results are in git, and say nothing about weights."""
    params, paths = load_params(Path("params.yaml"), "smoke"), Paths("smoke")
    write_json(paths.spec("seg-full"), {})
    assert trained_parts("seg-full", params)["spec"] == shipped("smoke", "seg-full") / "spec.json"
    write_json(paths.runs("seg-full") / "seed0/final.safetensors", {})
    assert trained_parts("seg-full", params)["spec"] == paths.spec("seg-full")


def test_a_baseline_in_git_has_its_backbone_from_the_scale_that_made_it(clone):
    params, own = load_params(Path("params.yaml"), "mini"), shipped("mini", "seg-swin-l")
    for folder, recipe in (
        (own, params.resolve("seg-swin-l").model_dump(mode="json")),
        (shipped("scratch", "swin-l"), {}),
    ):
        write_json(folder / "spec.json", {})
        write_json(folder / "manifest.json", {"schema": 1, "recipe": recipe, "files": digests(folder, ["spec.json"])})
    assert trained_parts("seg-swin-l", params)["checkpoint"] == shipped("scratch", "swin-l")


def test_a_folder_that_is_no_project_is_told(clone):
    params = load_params(Path("params.yaml"), "mini")
    with pytest.raises(
        UserError, match=r"is no project with trained networks; run vpd in the folder of its params\.yaml"
    ):
        find_parts("depth-full", params, {}, "")


def test_given_data_replace_the_classes_in_git_and_must_exist(clone):
    params = load_params(Path("params.yaml"), "smoke")
    write_json(shipped("smoke", "seg-full") / "classes.json", {})
    files = digests(
        shipped("smoke", "seg-full"), [name for name in tree(shipped("smoke", "seg-full")) if name != "manifest.json"]
    )
    write_json(shipped("smoke", "seg-full") / "manifest.json", {"schema": 1, "recipe": {}, "files": files})
    assert "classes" in find_parts("seg-full", params, {}, "")
    assert find_parts("seg-full", params, {"data": clone}, "").keys() == {"spec", "weights", "checkpoint", "data"}
    with pytest.raises(UserError, match=r"nowhere does not exist; name the folder of a prepared dataset"):
        find_parts("seg-full", params, {"data": Path("nowhere")}, "")


def test_weights_without_a_spec_are_told_what_to_run(clone):
    write_text(Path("dvc.yaml"), "stages: {}")
    with pytest.raises(
        UserError, match=r"has not been trained here; run it first .*results/smoke/runs/depth-fast/manifest\.json"
    ):
        find_parts("depth-fast", load_params(Path("params.yaml"), "smoke"), {"weights": Path("w.safetensors")}, "")


def test_networks_in_git_of_other_settings_are_told(clone, capsys):
    params, path = load_params(Path("params.yaml"), "smoke"), shipped("smoke", "seg-full") / "manifest.json"
    trained_parts("seg-full", params)
    assert capsys.readouterr().err == ""
    made = read_json(path)
    write_json(path, made | {"recipe": made["recipe"] | {"checkpoint": "sd-1-4"}})
    trained_parts("seg-full", params)
    assert "was trained with other settings of seg-full than" in capsys.readouterr().err


def _without(name: str):
    return lambda folder: shutil.rmtree(folder / "weights/smoke" / name)


@pytest.mark.parametrize(
    ("options", "change", "sentence"),
    [
        ([], _without("sd-1-5"), "weights/smoke/sd-1-5 does not exist; restore it with git, or"),
        (
            [],
            _without("seg-full"),
            "seg-full is neither in weights/smoke/seg-full nor trained here; restore it with git",
        ),
        ([], _without("depth-full"), "depth-full is neither in weights/smoke/depth-full nor trained here"),
        ([], lambda folder: (folder / "weights/smoke/sd-1-5/spec.json").write_text("[]"), "differs from its manifest"),
        ([], lambda folder: (folder / "weights/smoke/refcoco-full/spec.json").unlink(), "differs from its manifest"),
        (["--scale", "paper"], None, "scale paper has no small Stable Diffusion with `measures`; use another --scale"),
        (["--scale", "smokey"], None, "unknown scale 'smokey'"),
        (
            ["--prompt", "a dragon and a unicorn"],
            None,
            r"has words that the vocabulary of \S+ lacks \(dragon, .*unicorn",
        ),
        (["--prompt", "a red ball \U0001f600"], None, "has words that the vocabulary"),
        (["--prompt", "a ball " * 9], None, "has 18 words, but weights/smoke/sd-1-5 reads 6; shorten it"),
        (["--prompt", ""], None, "has an empty prompt"),
        (["--prompt", "a \udcff ball"], None, r"has letters that cannot be printed \(a \\udcff ball\); use words"),
        (["--prompt", "a \x1b ball"], None, "cannot be printed"),
        (["--prompt", "an office"], None, "names nothing that could be found"),
        (["--out", "demo.jpg"], None, r"demo\.jpg is not a file name that ends in \.png"),
        (["--out", "weights"], None, "weights is not a file name"),
        (["--out", ""], None, "is not a file name"),
    ],
)
def test_a_mistake_is_one_sentence(clone, capsys, options, change, sentence):
    if change:
        change(clone)
    assert main(["demo", "--scale", "smoke", "--prompt", "a red ball", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^vpd: .*{sentence}", line)
    assert not (clone / "predictions").exists()


@pytest.mark.parametrize("seed", ["1.5", "", "x", "1e3", "9" * 5000])
def test_a_seed_that_is_none_is_refused(capsys, seed):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", f"--seed={seed}"])
    assert "argument --seed" in capsys.readouterr().err
