"""Heads fit any width, stride and canvas, and have the released sizes at true width."""

import pytest
import torch
import torch.nn.functional as F

from fixtures.parity.narrow import build, make_batch, make_spec, write_checkpoint
from vpd.config.schema import HeadSpec
from vpd.models.base import Features
from vpd.models.heads import HEADS, PyramidPooling
from vpd.utils.errors import UserError

TASKS = ("segmentation", "referring", "depth")


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


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("depth", {"canvas": 72}, "canvas=72 is no multiple of the depth decoder's grid of 16"),
        ("segmentation", {"canvas": 64}, "canvas=64 works only with head 'depth-decoder'"),
        ("depth", {"head": {"norm_groups": 32}}, "norm_groups is 32, which does not divide 16 channels"),
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
    with pytest.raises(UserError, match="text encoder makes tokens 16 wide, but the U-Net takes 32"):
        build(make_spec("depth"), mixed)


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_autocast_is_close_to_float32(checkpoint, task):
    model, batch = build(make_spec(task), checkpoint), make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, prediction = model.features(batch).maps, model(batch)
    for found, expected in zip([*maps, prediction], [*model.features(batch).maps, model(batch)], strict=True):
        assert (found - expected).norm() < 0.05 * expected.norm()


WIDTHS = [16, 32, 64, 128]
SWIN = [4, 8, 16, 32]


def make_head(kind: str, strides: list[int], outputs: int = 3, **settings):
    """A narrow head of any kind on levels of these strides."""
    spec = HeadSpec(
        **{"kind": kind, "channels": 32, "deconv_channels": 8, "final_channels": 16, "norm_groups": 4} | settings
    )
    return HEADS[kind](spec, WIDTHS, strides, outputs)


def make_features(size: tuple[int, int], strides: list[int], images: int = 2) -> Features:
    """Random maps of the sizes that a backbone gives for an image of ``size``."""
    maps = [torch.randn(images, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(WIDTHS, strides, strict=True)]
    return Features(maps, strides, [None] * len(maps))


@pytest.mark.parametrize("grid", [8, 16, 32, 64])
def test_depth_has_the_size_of_the_image_on_any_grid(grid):
    strides, size = [grid // 4, grid // 2, grid, 2 * grid], (2 * grid, 3 * grid)
    head = make_head("depth-decoder", strides, 1)
    assert head(make_features(size, strides), size).shape == (2, 1, *size)


def test_depth_of_levels_that_do_not_fit_is_refused():
    with pytest.raises(UserError, match="third level of stride 8, 16, 32 or so on, found 12"):
        make_head("depth-decoder", [3, 6, 12, 24])
    spec = HeadSpec(kind="depth-decoder", channels=32)
    with pytest.raises(UserError, match="needs a backbone of three levels, found 2"):
        HEADS["depth-decoder"](spec, WIDTHS[:2], SWIN[:2], 1)
    with pytest.raises(UserError, match="multiples of 16 pixels, found 48x40"):
        make_head("depth-decoder", SWIN, 1)(make_features((48, 40), SWIN), (48, 40))


@pytest.mark.parametrize(("kind", "full"), [("semantic-fpn", False), ("upernet", False), ("simple-decoding", True)])
@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 96)])
def test_segmentation_heads_have_the_finest_levels_or_the_images_size(kind, full, size):
    """Maps of images that no stride divides are rounded up."""
    features = make_features(size, SWIN)
    logits = make_head(kind, SWIN)(features, size)
    assert logits.shape == (2, 3, *(size if full else features.maps[0].shape[-2:]))
    logits.square().mean().backward()


def test_weights_are_drawn_with_the_spread_of_their_rule():
    """Xavier's bound of a lateral layer, Kaiming's deviation by fan out, and 0.01 of the classifier; no two layers agree."""
    spec = HeadSpec(kind="semantic-fpn", channels=64)
    head = HEADS["semantic-fpn"](spec, [40, 80, 160, 320], SWIN, 150)
    for c, lateral in zip((40, 80, 160, 320), head.neck.lateral_convs, strict=True):
        assert lateral.weight.abs().max().item() == pytest.approx((6 / (c + 64)) ** 0.5, rel=0.01)
    layers = [block.conv for scale in head.scale_heads for block in scale if hasattr(block, "conv")]
    assert len(layers) == 1 + 1 + 2 + 3
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert len({layer.weight.flatten()[0].item() for layer in layers}) == len(layers)


def test_semantic_fpn_doubles_by_strides_not_by_levels():
    """A level as fine as the finest needs no doubling; one four times as coarse needs two."""
    strides = [4, 4, 16, 32]
    head = make_head("semantic-fpn", strides)
    doublings = [sum(isinstance(m, torch.nn.Upsample) for m in scale) for scale in head.scale_heads]
    assert doublings == [0, 0, 2, 3]
    assert head(make_features((64, 32), strides), (64, 32)).shape == (2, 3, 16, 8)


def test_upernet_of_constant_maps_is_what_one_computes_by_hand():
    """Every convolution averages its channels at the middle tap; batch norm, with an eps of 3, halves what it sees."""
    values, width = (1.0, 2.0, 5.0, 3.0), 8
    spec = HeadSpec(kind="upernet", channels=width)
    head = HEADS["upernet"](spec, [width] * 4, SWIN, 2).eval()
    for norm in (m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.eps = 3.0
    with torch.no_grad():
        for conv in (m for m in head.modules() if isinstance(m, torch.nn.Conv2d)):
            conv.weight.zero_()
            middle = conv.kernel_size[0] // 2
            conv.weight[:, :, middle, middle] = 1 / conv.in_channels
        head.conv_seg.bias.copy_(torch.tensor([0.0, 10.0]))
    maps = [torch.full((1, width, 64 // s, 96 // s), value) for value, s in zip(values, SWIN, strict=True)]
    found = head(Features(maps, SWIN, [None] * 4), (64, 96))
    fourth = (3 + 4 * 3 / 2) / 5 / 2
    third = 5 / 2 + fourth
    second = 2 / 2 + third
    first = 1 / 2 + second
    logit = (first / 2 + second / 2 + third / 2 + fourth) / 4 / 2
    expected = torch.tensor([logit, logit + 10])[None, :, None, None].expand(1, 2, 16, 24)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_pyramid_pooling_averages_and_repeats():
    """On a map of 2x2 the grid of 1x1 is its mean, and one of 6x6, finer than the map, gives the map again."""
    pooling = PyramidPooling(1, 1, (1, 6)).eval()
    seen = []
    pooling.bottleneck.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    for branch in pooling.branches:
        torch.nn.init.ones_(branch.conv.weight)
        branch.bn.eps = 0.0
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    pooling(x)
    assert torch.equal(seen[0][:, 0:1], x)
    torch.testing.assert_close(seen[0][:, 1:2], torch.full_like(x, 3.0))
    torch.testing.assert_close(seen[0][:, 2:3], x)


def test_upernet_trains_on_maps_of_2x2_but_not_on_one_image():
    head = make_head("upernet", SWIN)
    head(make_features((64, 64), SWIN), (64, 64)).sum().backward()
    assert all(p.grad is not None for p in head.parameters())
    one = make_features((64, 64), SWIN, images=1)
    with pytest.raises(UserError, match=r"one image at a time.*raise training\.batch_size"):
        head(one, (64, 64))
    assert head.eval()(one, (64, 64)).shape == (1, 3, 16, 16)
    assert make_head("upernet", SWIN, pool_scales=(2, 3))(one, (64, 64)).shape == (1, 3, 16, 16)
