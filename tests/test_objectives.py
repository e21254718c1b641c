"""Pre-training objectives of backbones: exact losses, learning with each, and the same bits however often a run is killed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from pretraining_fakes import Stopped, digests, kill_at, watched
from vpd.config.schema import BackboneSpec, DatasetSpec, ObjectiveSpec
from vpd.config.schema import Objective as ObjectiveName
from vpd.models.backbones import build_backbone, load_backbone
from vpd.pretraining.backbones.contrast import IGNORED, Contrast, following
from vpd.pretraining.backbones.examples import Examples, crops, flipped, jittered, load_examples, luminance
from vpd.pretraining.backbones.masked_image import MaskedImage, enlarge, hidden_error, normalise_squares
from vpd.pretraining.backbones.masked_language import MaskedLanguage, to_predict, train_wordpiece
from vpd.pretraining.backbones.objective import mean_average_precision
from vpd.pretraining.backbones.pretrain import (
    build_objective,
    parameter_groups,
    pretrain_backbone,
    train_objective,
)
from vpd.pretraining.backbones.promptable_masks import dice_loss, focal_loss, points_inside
from vpd.pretraining.backbones.self_distillation import SelfDistillation, distillation, sharpened, voted
from vpd.pretraining.loop import HISTORY_EVERY, generator_of
from vpd.pretraining.workdir import Workdir
from vpd.stages.data import prepare_dataset
from vpd.utils.digests import changed
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

OBJECTIVES = get_args(ObjectiveName)
COUNT, SIDE = 32, 32
SMALL_VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
SMALL_SWIN = {"img_size": SIDE, "window_size": 2, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
VIT = {"library": "timm", "architecture": "vit_base_patch8_224", "options": SMALL_VIT}
SWIN = {"library": "timm", "architecture": "swin_base_patch4_window7_224", "options": SMALL_SWIN}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES["max_position_embeddings"] = 40
BERT = {"architecture": "bert", "repo": "google-bert/bert-base-uncased", "options": SIZES}


def spec_of(objective: str, vision: dict = VIT, *, steps: int = 5, lr: float = 3e-3, **changes) -> BackboneSpec:
    values = {
        "source": "pretrained",
        "objective": objective,
        "vision": vision,
        "vocabulary": 600,
        "images_seen": 8 * steps,
    }
    values["training"] = {"batch_size": 8, "lr": lr}
    return BackboneSpec.model_validate(values | changes)


def with_language(**changes) -> BackboneSpec:
    training = {"batch_size": 8, "lr": 3e-3}
    return spec_of("classification", SWIN, language=BERT, language_training=training, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    for name in ("captions", "objects"):
        spec = DatasetSpec(format=name, source="synthetic", images={"train": COUNT}, size=(SIDE, SIDE))
        prepare_dataset(name, spec, root / name)
    return {name: root / name for name in ("captions", "objects")}


@pytest.fixture(scope="module")
def examples(data: dict[str, Path]) -> Examples:
    return load_examples(data["captions"], data["objects"])


def pretrain(spec: BackboneSpec, data: dict[str, Path], root: Path, **more) -> Path:
    pretrain_backbone("tiny", spec, data["captions"], data["objects"], root / "out", root / "state", **more)
    return root / "out"


def test_the_last_images_are_kept_out_of_training(examples, data):
    assert examples.first_held == COUNT - 2
    assert examples.numbers("images", held=True).tolist() == [COUNT - 2, COUNT - 1]
    assert examples.numbers("pairs", held=False).tolist() == list(range(COUNT - 2))
    entries = read_json(data["captions"] / "captions.json", list)
    assert examples.texts(held=True) == list(dict.fromkeys(entry["caption"] for entry in entries[-2:]))
    things = [examples.instances[examples.numbers("things", held)] for held in (False, True)]
    assert things[0][:, 0].max() < COUNT - 2 <= things[1][:, 0].min()
    for image, number in examples.instances.tolist():
        assert (examples.masks[image] == number).sum() >= 8
    for entry, visible in zip(
        read_json(data["objects"] / "objects.json", list), examples.visible.tolist(), strict=True
    ):
        assert {name for name, there in zip(examples.classes, visible, strict=True) if there} == set(entry["classes"])


def test_objects_of_other_images_are_refused(data, tmp_path):
    root = Path(shutil.copytree(data["objects"], tmp_path / "objects"))
    shutil.copy(root / "images/000004.jpg", root / "images/000003.jpg")
    with pytest.raises(UserError, match="show different images; give both the same seed"):
        load_examples(data["captions"], root)


def test_flips_mirror():
    images = torch.rand(6, 3, 16, 24)
    mirrored = flipped(images, generator_of("views"))
    kinds = [torch.equal(one, two) - torch.equal(one.flip(-1), two) for one, two in zip(images, mirrored, strict=True)]
    assert set(kinds) == {1, -1}


def test_crops_cover_the_asked_share_of_a_ramp():
    ramp = torch.linspace(0, 1, 64).expand(400, 3, 64, 64)
    both = torch.stack([ramp[:, 0], ramp[:, 0].transpose(1, 2), ramp[:, 0]], dim=1)
    views = crops(both, (32, 32), (0.2, 0.5), generator_of("ramp"))
    width = views[:, 0].amax(dim=(1, 2)) - views[:, 0].amin(dim=(1, 2))
    height = views[:, 1].amax(dim=(1, 2)) - views[:, 1].amin(dim=(1, 2))
    area = width * height * (32 / 31) ** 2 * (63 / 64) ** 2
    assert 0.19 < area.min().item() < 0.23
    assert 0.46 < area.max().item() < 0.52
    ratio = width / height
    assert 0.73 < ratio.min().item() < 0.78
    assert 1.28 < ratio.max().item() < 1.37


def test_jitter_without_strength_changes_nothing_and_grey_takes_all_colour():
    images = torch.rand(8, 3, 8, 8) * 1.9 - 0.95
    torch.testing.assert_close(jittered(images, 0.0, 0.0, generator_of("jitter")), images)
    grey = jittered(images, 0.0, 1.1, generator_of("jitter"))
    torch.testing.assert_close(grey, luminance(images).expand_as(images))


def test_mean_average_precision_leaves_out_classes_that_all_or_no_images_show():
    scores, generator = torch.rand(30, 4), torch.Generator().manual_seed(1)
    shown = torch.rand(30, 4, generator=generator) < 0.5
    shown[:, 1], shown[:, 3] = True, False
    kept = [average_precision_score(shown[:, column], scores[:, column]) for column in (0, 2)]
    expected = (sum(kept) / 2, shown[:, [0, 2]].float().mean().item())
    assert mean_average_precision(scores, shown) == pytest.approx(expected)
    assert mean_average_precision(scores[:, :0], shown[:, :0]) == (0, 0)


def test_squares_are_normalised_by_themselves():
    images = torch.zeros(1, 3, 8, 16)
    images[..., :8] = torch.tensor([-1.0, 1.0]).repeat(4) * 0.5 + 0.25
    made = normalise_squares(images, 8)
    torch.testing.assert_close(made[0, 0, 0, :4], torch.tensor([-1.0, 1.0, -1.0, 1.0]) * 0.5 / 0.52)
    assert not made[..., 8:].any()


def test_masked_loss_ignores_what_is_visible():
    target, hidden = torch.randn(2, 3, 8, 8), torch.zeros(2, 2, 2, dtype=torch.bool)
    hidden[0, 0, 1] = hidden[1, 1, 1] = True
    predicted = target.clone()
    predicted[0, :, :4, :4] += 100.0
    assert hidden_error(predicted, target, hidden).item() == 0.0
    predicted[0, :, :4, 4:] += 2.0
    assert hidden_error(predicted, target, hidden).item() == pytest.approx(2.0)
    assert enlarge(hidden, 4)[0].sum() == 16


def test_hidden_pixels_do_not_reach_the_prediction(examples):
    spec = spec_of("masked-image", SWIN)
    objective = MaskedImage(build_backbone(spec.vision), examples, spec).eval()
    assert objective.unit == 8
    hidden = objective.hide(4, generator_of("hide"))
    assert hidden.sum(dim=(1, 2)).tolist() == [round(0.6 * 16)] * 4
    images = examples.captions.pixels(torch.arange(4))
    covered = enlarge(hidden, 8)[:, None]
    before = objective.predict(images, hidden)
    assert torch.equal(before, objective.predict(images.masked_fill(covered, 0.3), hidden))
    assert not torch.equal(before, objective.predict(images.masked_fill(~covered, 0.3), hidden))


def test_dice_and_focal_losses_have_their_hand_values():
    target = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    sure = torch.tensor([[[50.0, -50.0, 50.0, -50.0]]])
    assert dice_loss(sure, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    undecided = torch.zeros_like(target)
    assert dice_loss(undecided, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    # p = 1/2 everywhere: log 2 / 4, weighted by alpha 1/4 on two pixels and 3/4 on two.
    assert focal_loss(undecided, target).item() == pytest.approx(math.log(2) / 4 * 0.5)
    one = torch.tensor([[[math.log(3.0)]]])
    assert focal_loss(one, torch.ones(1, 1, 1)).item() == pytest.approx(0.25 * 0.25**2 * math.log(4 / 3))


def test_points_lie_inside_and_reach_all_of_a_mask():
    masks = torch.zeros(300, 4, 8, dtype=torch.bool)
    masks[:, 1, 2] = masks[:, 3, 7] = True
    points = points_inside(masks, generator_of("points"))
    assert set(map(tuple, points.tolist())) == {(2.5 / 8, 1.5 / 4), (7.5 / 8, 3.5 / 4)}


def test_teacher_is_centred_and_sharpened():
    outputs, centre = torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([0.3, 0.0, 0.2])
    expected = torch.tensor([[0.0, 0.1, 0.0]]) / 0.04
    torch.testing.assert_close(sharpened(outputs, centre), expected.softmax(dim=1))


def test_distillation_compares_different_views_only():
    targets = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    logits = [torch.tensor([[0.0, 0.1]]), torch.tensor([[0.2, 0.0]]), torch.tensor([[0.05, 0.0]])]
    logs = [(value / 0.1).log_softmax(dim=1)[0] for value in logits]
    expected = -(logs[1][0] + logs[2][0] + logs[0][1] + logs[2][1]) / 4
    assert distillation(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_centre_and_teacher_follow_with_their_momenta(examples):
    spec = spec_of("self-distillation", training={"batch_size": 8, "lr": 1e-3, "momentum": 0.9})
    objective = SelfDistillation(build_backbone(spec.vision), examples, spec)
    seen: list[Tensor] = []
    objective.teacher.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    objective.loss(torch.arange(4), generator_of("views"))
    torch.testing.assert_close(objective.centre, 0.1 * seen[0].mean(dim=0))
    weight = next(objective.student.parameters())
    with torch.no_grad():
        weight += 1.0
    ours = next(objective.teacher.parameters())
    before = ours.clone()
    objective.after(0.5)
    torch.testing.assert_close(ours - before, torch.full_like(ours, 0.05))
    objective.after(1.0)
    torch.testing.assert_close(ours - before, torch.full_like(ours, 0.05))
    assert objective.result() is objective.teacher.backbone


def test_votes_are_those_of_scikit_learns_weighted_neighbours():
    generator = torch.Generator().manual_seed(0)
    features, known = (F.normalize(torch.randn(count, 8, generator=generator), dim=1) for count in (5, 50))
    shown = torch.rand(50, 3, generator=generator) < 0.4
    weigh = KNeighborsRegressor(20, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine")
    expected = weigh.fit(known.numpy(), shown.float().numpy()).predict(features.numpy())
    assert voted(features, known, shown).numpy() == pytest.approx(expected, abs=1e-5)


def test_logits_of_contrast_are_scaled_cosines(examples):
    spec = spec_of("contrast")
    objective = Contrast(build_backbone(spec.vision), examples, spec).eval()
    with torch.no_grad():
        objective.log_scale.fill_(math.log(1000.0))
        objective.project_text.weight.copy_(torch.eye(96))
        objective.project_image.weight.zero_()[:32] = torch.eye(32)
        images, tokens = objective.pair(torch.arange(3))
        maps = objective.backbone(images)
        logits = objective.logits(maps, tokens)
        image = F.layer_norm(maps[-1].mean(dim=(2, 3)), (32,))
        text = objective.text(tokens).last_hidden_state
        ends = (tokens == objective.tokenizer.eos_token_id).int().argmax(dim=1)
        words = text[torch.arange(3), ends]
        cosine = F.cosine_similarity(F.pad(image, (0, 64))[:, None], words[None], dim=2)
    torch.testing.assert_close(logits, 100 * cosine, atol=1e-4, rtol=1e-4)
    assert objective.tokens.shape[1] == (objective.tokens == objective.tokenizer.eos_token_id).int().argmax(1).max() + 1


def test_a_caption_is_predicted_up_to_its_end_only():
    tokens = torch.tensor([[1, 5, 6, 2, 2], [1, 7, 2, 2, 2]])
    assert following(tokens, 2).tolist() == [[5, 6, 2, IGNORED], [7, 2, IGNORED, IGNORED]]


def test_tokens_to_predict_are_a_share_of_the_ordinary_ones():
    tokens = torch.tensor([[2, *range(10, 30), 3], [2, 10, 11, 3] + 18 * [0]]).repeat(500, 1)
    chosen = to_predict(tokens, torch.arange(5), generator_of("predict"))
    assert not chosen[tokens < 5].any()
    assert chosen[0::2].sum(dim=1).unique().tolist() == [3]
    assert chosen[1::2].sum(dim=1).unique().tolist() == [1]
    assert chosen[:, 1:3].any(dim=0).all()


def test_most_words_to_predict_are_masked_and_others_kept_as_they_are(examples):
    objective = MaskedLanguage(examples, with_language())
    tokens = objective.texts[False][:1].repeat(3000, 1)
    seen, chosen = objective.hide(tokens, generator_of("hide"))
    assert torch.equal(seen[~chosen], tokens[~chosen])
    masked = (seen == objective.tokenizer.mask_token_id)[chosen].float().mean().item()
    kept = (seen == tokens)[chosen].float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)


def test_wordpiece_knows_frequent_words_and_splits_others(tmp_path):
    texts = ["a red ball in the kitchen", "the red box", "a red lamp", "a kitchen with a red ball"]
    made = train_wordpiece(texts, 200, 16)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("A Red kitchen") == ["a", "red", "kitchen"]
    pieces = loaded.tokenize("zebra!")
    assert "".join(piece.removeprefix("##") for piece in pieces) == "zebra!"
    assert len(pieces) > 3
    ids = loaded("red ball", padding="max_length", max_length=6).input_ids
    assert ids == made("red ball", padding="max_length", max_length=6).input_ids
    assert loaded.convert_ids_to_tokens(ids) == ["[CLS]", "red", "ball", "[SEP]", "[PAD]", "[PAD]"]
    assert loaded.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert (len(loaded), loaded.model_max_length) == (len(made), 16)
    with pytest.raises(UserError, match=r"backbones\.vocabulary is 50, but BERT"):
        train_wordpiece(texts, 50, 16)


def train(objective: nn.Module, training: ObjectiveSpec, steps: int, folder: Path) -> list[float]:
    workdir = Workdir(folder, 0, 1000, torch.device("cpu"))
    return train_objective("phase", "backbones.tiny.training", objective, training, steps, workdir)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "self-distillation"])
def test_every_objective_learns(name, examples, tmp_path):
    spec = spec_of(name, SWIN if name in ("classification", "masked-image") else VIT, steps=30)
    objective = build_objective(name, spec, examples)
    losses = train(objective, spec.training, 30, tmp_path)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert all(value <= 1 for value in objective.measure().values())


def test_masked_language_learns(examples, tmp_path):
    spec = with_language()
    objective = MaskedLanguage(examples, spec)
    fresh = objective.eval().measure()["token_accuracy"]
    losses = train(objective, ObjectiveSpec(batch_size=16, lr=1e-2), 60, tmp_path)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert objective.measure()["token_accuracy"] > fresh


def test_only_matrices_are_decayed():
    groups = parameter_groups(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), 0.05)
    assert [[tuple(one.shape) for one in group["params"]] for group in groups] == [[(2, 3)], [(2,), (2,), (2,)]]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    out = pretrain(with_language(), data, root)
    assert not (root / "state").exists()
    return out


def test_checkpoint_folder_holds_vision_and_language(trained):
    backbone = load_backbone(trained)
    maps = backbone(torch.zeros(1, 3, SIDE, SIDE))
    assert [tuple(level.shape[1:]) for level in maps] == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]
    bert, info = AutoModel.from_pretrained(trained / "language", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(trained / "language")
    hidden = bert(**tokenizer("a red ball", return_tensors="pt")).last_hidden_state
    assert hidden.shape == (1, 5, 16)
    manifest = read_json(trained / "manifest.json")
    counted = {"vision": backbone.network, "language": bert}
    assert manifest["parameters"] == {part: sum(p.numel() for p in net.parameters()) for part, net in counted.items()}


def test_manifest_and_history_tell_what_was_done(trained):
    manifest = read_json(trained / "manifest.json")
    assert [manifest[key] for key in ("name", "source", "objective")] == ["tiny", "pretrained", "classification"]
    assert manifest["images_seen"] == 40
    phases = manifest["phases"]
    assert set(phases["classification"]["measures"]) == {"fresh", "trained"}
    assert not changed(trained, manifest["files"])
    rows = [line.split(",") for line in (trained / "history.csv").read_text().splitlines()]
    assert [row[:2] for row in rows] == [["phase", "step"], ["classification", "5"], ["masked-language", "5"]]
    assert HISTORY_EVERY > 5
    assert float(rows[1][2]) == pytest.approx(phases["classification"]["loss"]["last"], abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_stopped_runs_end_with_the_bits_of_an_uninterrupted_one(name, data, tmp_path):
    spec = spec_of(name, steps=4)
    whole = pretrain(spec, data, tmp_path / "whole")
    with pytest.raises(Stopped), watched("backbones.tiny.training", 3) as before:
        pretrain(spec, data, tmp_path / "parts", save_every=2)
    with watched() as after:
        parts = pretrain(spec, data, tmp_path / "parts", save_every=2)
    assert [step for _, step in before + after] == [1, 2, 3, 3, 4]
    assert digests(parts) == digests(whole)


def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(data, trained, tmp_path):
    key = "backbones.tiny.language_training"
    paths = (data["captions"], data["objects"], tmp_path / "out", tmp_path / "state")
    kill_at(key, 3, pretrain_backbone, "tiny", with_language(), *paths, save_every=2)
    assert not (tmp_path / "out/manifest.json").exists()
    with watched() as steps:
        out = pretrain(with_language(), data, tmp_path, save_every=2)
    assert steps == [(key, 3), (key, 4), (key, 5)]
    assert digests(out) == digests(trained)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of("contrast", vocabulary=None), r"backbones\.tiny .* contrast, but has no vocabulary"),
        (spec_of("classification", training=None), r"backbones\.tiny .* but has no training"),
        (spec_of("classification", language=BERT), r"but has no language_training"),
        (spec_of("contrast", vocabulary=400), r"backbones\.vocabulary is 400, but the bytes alone need 514"),
    ],
)
def test_what_an_objective_lacks_is_named(spec, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        pretrain(spec, data, tmp_path)


def test_images_that_squares_do_not_tile_are_named(examples):
    spec = spec_of("masked-image", {**VIT, "options": VIT["options"] | {"patch_size": 12, "img_size": 36}})
    with pytest.raises(UserError, match="images are 32x32, but masked-image hides squares of 12"):
        MaskedImage(build_backbone(spec.vision), examples, spec)
