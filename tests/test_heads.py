"""Heads fit any width, stride and canvas, and have the released sizes at true width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from fixtures.parity.narrow import (
    attention,
    build,
    make_batch,
    make_spec,
    write_checkpoint,
    write_factor_4,
    write_factor_8,
)
from vpd.errors import UserError
from vpd.models.diffusion import FeatureUNet
from vpd.models.heads import HEADS

TASKS = ("segmentation", "referring", "depth")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_factor_4(tmp_path_factory.mktemp("factor4"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_factor_8(tmp_path_factory.mktemp("factor8"))


@pytest.mark.parametrize(("folder", "unit"), [("checkpoint", 16), ("wide", 32)])
def test_depth_has_the_size_of_the_image_with_and_without_canvas(request, folder, unit):
    """One grid unit is 4 VAE strides; 352 on 384 and 480 on 512 of the paper are one unit of 32 (D10)."""
    folder, canvas = request.getfixturevalue(folder), 3 * unit
    model = build(make_spec("depth", canvas=canvas), folder)
    for size in [(canvas, canvas), (canvas - unit, canvas - unit), (canvas - unit, canvas)]:
        depth = model(make_batch(*size))
        assert depth.shape == (2, 1, *size)
        assert ((depth > 0) & (depth < 10)).all()
    free = build(make_spec("depth"), folder)
    assert free(make_batch(unit, 3 * unit)).shape == (2, 1, unit, 3 * unit)
    small = make_batch(2 * unit, 2 * unit)
    padded = small | {"image": F.pad(small["image"], (0, unit, 0, unit))}
    for found, expected in zip(model.features(small).maps, free.features(padded).maps, strict=True):
        assert torch.equal(found, expected)


def test_images_that_do_not_fit_are_named(checkpoint):
    model = build(make_spec("depth", canvas=64), checkpoint)
    with pytest.raises(UserError, match=r"40x48 pixels does not fit model\.canvas=64: sides must be 48 or 64"):
        model(make_batch(40, 48))
    with pytest.raises(UserError, match="multiples of 16 pixels, found 64x72"):
        build(make_spec("depth"), checkpoint)(make_batch(64, 72))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("depth", {"canvas": 72}, "canvas=72 is no multiple of the depth decoder's grid of 16"),
        ("segmentation", {"canvas": 64}, "canvas=64 works only with head 'depth-decoder'"),
        ("depth", {"head": {"norm_groups": 6}}, "norm_groups is 6, which does not divide 16 channels"),
    ],
)
def test_settings_that_do_not_fit_are_named(checkpoint, task, change, message):
    with pytest.raises(UserError, match=message):
        build(make_spec(task, **change), checkpoint)


def test_missing_or_mixed_checkpoints_are_named(checkpoint, tmp_path):
    with pytest.raises(UserError, match="has no folder unet/"):
        build(make_spec("depth"), tmp_path)
    mixed = write_checkpoint(tmp_path / "mixed", width=16)
    (mixed / "unet").rename(tmp_path / "narrow")
    (mixed / "unet").symlink_to(checkpoint / "unet")
    with pytest.raises(UserError, match="text encoder is 16 wide but the U-Net attends to 32"):
        build(make_spec("depth"), mixed)


@pytest.mark.parametrize(
    ("task", "head", "channels", "outputs", "parameters"),
    [
        ("segmentation", {"channels": 256}, [320, 790, 1430, 1280], 150, 3_339_264 + 4_170_902),
        ("referring", {"channels": 640}, [320, 680, 1320, 1280], 2, 39_176_962),
        (
            "depth",
            {"channels": 1536, "deconv_channels": 32, "final_channels": 192},
            [320, 640, 1280, 1280],
            1,
            1_844_480 + 3_687_040 + 5_411_328 + 260_864 + 333_697,
        ),
    ],
)
def test_heads_of_true_size_have_the_released_number_of_parameters(task, head, channels, outputs, parameters):
    spec = make_spec(task, head=head).model.head
    with torch.device("meta"):
        built = HEADS[spec.kind](spec, channels, outputs, 8)
    assert sum(p.numel() for p in built.parameters()) == parameters


def test_unet_of_true_size_has_the_released_number_of_parameters():
    """859,520,964 with the output layer's 12,164, which no feature needs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        features = FeatureUNet(unet, attention())
    assert sum(p.numel() for p in features.parameters()) == 859_520_964 - 12_164
    assert features.recorded == [1, 2]


def test_referring_logits_have_the_image_size(checkpoint):
    assert build(make_spec("referring"), checkpoint)(make_batch(48, 80)).shape == (2, 2, 48, 80)


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_autocast_is_close_to_float32(checkpoint, task):
    model, batch = build(make_spec(task), checkpoint), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, prediction = model.features(batch).maps, model(batch)
    for found, expected in zip([*maps, prediction], [*model.features(batch).maps, model(batch)], strict=True):
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_dropout_of_channels_is_active_in_training_only(checkpoint):
    model = build(make_spec("segmentation", head={"dropout": 0.9}), checkpoint)
    batch = make_batch()
    assert torch.equal(model(batch), model(batch))
    model.head.dropout.train()
    assert not torch.equal(model(batch), model(batch))
