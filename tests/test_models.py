"""The network keeps its contract for any width, size and selection; U-Net features are those of diffusers' own forward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from fixtures.parity.narrow import make_spec, with_training, write_checkpoint
from vpd.errors import UserError
from vpd.models import LatentCache, build_model
from vpd.models.attention import CrossAttention, set_processors
from vpd.models.diffusion import FeatureUNet
from vpd.models.heads import HEADS
from vpd.spec import AttentionSpec, LossSpec, Spec
from vpd.training.losses import loss

CLASSES = ["wall", "ball", "box"]
TASKS = ("segmentation", "referring", "depth")
UNET, TOKENS = (16, 32, 64, 64), 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(11)
    return write_checkpoint(tmp_path_factory.mktemp("factor4"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two layers per block, a VAE of factor 8, attention at the coarsest level too."""
    torch.manual_seed(1)
    shape = {"vae": (8, 8, 16, 16), "layers": 2, "coarse_attention": True}
    return write_checkpoint(tmp_path_factory.mktemp("factor8"), **shape)


def build(spec: Spec, checkpoint, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(spec, checkpoint, [] if spec.task == "referring" else CLASSES).eval()


def attention(places=("down", "up"), limit=0.5, gradient="detached") -> AttentionSpec:
    return AttentionSpec(places=places, limit=limit, gradient=gradient)


def make_batch(height: int = 64, width: int = 64) -> dict:
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return {"image": image, "text": ["red ball", "left box"], "class_id": torch.tensor([2, -1])}


# --------------------------------------------------------------------------------------------------------------- features
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (36, 52), (100, 71)])
def test_sizes_channels_and_strides_for_any_input(checkpoint, size):
    model = build(make_spec("segmentation"), checkpoint)
    features = model.features(make_batch(*size))
    latent = [side // 2 // 2 for side in size]
    sizes = [tuple(-(-side // 2**level) for side in latent) for level in range(4)]
    assert [tuple(x.shape[-2:]) for x in features.maps] == sizes
    assert [x.shape[1] for x in features.maps] == [16, 32 + TOKENS, 64 + TOKENS, 64]
    assert features.strides == [4, 8, 16, 32]
    for x, maps in zip(features.maps[1:3], features.attention[1:3], strict=True):
        assert torch.equal(x[:, -TOKENS:], maps)
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
    assert model(make_batch(*size)).shape == (2, len(CLASSES), *latent)


@pytest.mark.parametrize("folder", ["checkpoint", "wide"])
@pytest.mark.parametrize("side", [(16, 16), (9, 14)])
def test_features_are_those_of_diffusers_forward(request, folder, side):
    """Hooks on diffusers' own forward: the last but one block of every level, the last one of the finest (S4)."""
    original = UNet2DConditionModel.from_pretrained(request.getfixturevalue(folder) / "unet")
    ours = FeatureUNet(copy.deepcopy(original), attention(), gradient_checkpointing=False)
    seen: list[Tensor] = []
    for block in original.up_blocks:
        layers = getattr(block, "attentions", block.resnets)
        last = layers[-1] if block.upsamplers is None else layers[-2]
        last.register_forward_hook(
            lambda _m, _i, output: seen.insert(0, output if torch.is_tensor(output) else output[0])
        )
    latents, context = torch.randn(2, 4, *side), torch.randn(2, 5, 32)
    with torch.no_grad():
        original(latents, 7, context)
        maps, _ = ours(latents, 7, context)
    for found, expected in zip(maps, seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_timestep_and_latent_scale_matter(checkpoint):
    """S1 and S2: settings of the spec, not constants."""
    reference, later, scaled = (
        build(make_spec("segmentation", **change), checkpoint)
        for change in ({}, {"timestep": 100}, {"latent_scale": 0.18215})
    )
    batch = make_batch()
    torch.testing.assert_close(scaled.vae(batch["image"]), 0.18215 * reference.vae(batch["image"]))
    for model in (later, scaled):
        found, expected = model.features(batch).maps[0], reference.features(batch).maps[0]
        assert (found - expected).norm() > 1e-3 * expected.norm()


# -------------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize(
    ("places", "limit", "levels"),
    [
        (("down", "up"), 0.5, [1, 2]),
        (("down", "up"), 1.0, [0, 1, 2]),
        (("down",), 0.25, [2]),
        (("up",), 0.5, [1, 2]),
        (("mid",), 0.5, [3]),
        (("down", "mid", "up"), 1.0, [0, 1, 2, 3]),
        ((), 0.5, []),
    ],
)
def test_maps_are_recorded_where_the_spec_says(checkpoint, places, limit, levels):
    spec = attention(places, limit)
    model = build(make_spec("segmentation", attention=spec), checkpoint)
    features = model.features(make_batch(48, 80))
    assert [level for level, maps in enumerate(features.attention) if maps is not None] == levels
    for level in levels:
        assert features.attention[level].shape == (2, TOKENS, *features.maps[level].shape[-2:])
    assert [x.shape[1] for x in features.maps] == [c + TOKENS * (i in levels) for i, c in enumerate(UNET)]


def test_the_middle_joins_the_coarsest_level_of_the_others(wide):
    """S7: with attention at 1/8 of the latent side, its maps and the middle block's are averaged."""
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    maps = {}
    for places in (("down",), ("mid",), ("up",), ("down", "mid", "up")):
        unet = FeatureUNet(UNet2DConditionModel.from_pretrained(wide / "unet"), attention(places, 0.125))
        assert unet.recorded == [3]
        maps[places] = unet(latents, 1, context)[1][3]
    down, middle, up, everything = maps.values()
    torch.testing.assert_close(everything, (2 * down + middle + 3 * up) / 6)


def test_a_place_that_records_nothing_is_an_error(checkpoint):
    with pytest.raises(UserError, match=r"no map at 'down'.*limit=0\.125"):
        build(make_spec("segmentation", attention=attention(("mid", "down"), 0.125)), checkpoint)


def test_attached_maps_change_gradients_only(checkpoint):
    """S14."""
    outputs, gradients = [], []
    for gradient in ("detached", "attached"):
        model = build(make_spec("segmentation", attention=attention(gradient=gradient)), checkpoint)
        features = model.features(make_batch())
        assert features.attention[1].requires_grad == (gradient == "attached")
        sum(x.square().mean() for x in features.maps).backward()
        outputs.append(features.maps[1].detach())
        gradients.append(model.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_q.weight.grad)
    assert torch.equal(*outputs)
    assert (gradients[0] - gradients[1]).norm() > 1e-6 * gradients[0].norm()


def test_one_token_equals_full_attention_with_exact_zero_query_gradients(checkpoint):
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    pixels, context = torch.randn(2, 12, 16, requires_grad=True), torch.randn(2, 1, 32, requires_grad=True)
    results = []
    for processor in (AttnProcessor2_0(), CrossAttention(None, detached=True)):
        unet.zero_grad()
        layer.set_processor(processor)
        output = layer(pixels, encoder_hidden_states=context)
        (gradient,) = torch.autograd.grad(output.square().sum(), context, retain_graph=True)
        output.square().sum().backward()
        results.append((output, gradient, layer.to_v.weight.grad))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected)
    assert not layer.to_q.weight.grad.any()
    assert not layer.to_k.weight.grad.any()


def test_nothing_is_kept_between_calls(checkpoint):
    model = build(make_spec("segmentation"), checkpoint)
    first = model(make_batch())
    model(make_batch(48, 80)).sum().backward()
    assert torch.equal(model(make_batch()), first)
    processors = [m.processor for m in model.unet.modules() if hasattr(m, "processor")]
    assert not any(torch.is_tensor(value) for p in processors for value in vars(p).values())


@pytest.mark.parametrize("gradient", ["detached", "attached"])
def test_gradient_checkpointing_changes_nothing(wide, gradient):
    results = []
    for recompute in (False, True):
        spec = make_spec("segmentation", attention=attention(gradient=gradient))
        model = build(with_training(spec, gradient_checkpointing=recompute), wide).train()
        output = model(make_batch())
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- frozen, trained
@pytest.mark.parametrize("task", TASKS)
def test_every_trained_tensor_gets_a_gradient_and_no_frozen_one(checkpoint, task):
    model = build(make_spec(task), checkpoint).train()
    model(make_batch()).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith(("vae.", "text."))}
    assert {name.split(".")[0] for name in trained} == {"unet", "adapter", "head"}
    assert not any(module.training for module in model.vae.modules())
    assert not any("decoder" in name or "conv_out" in name for name in trained)


@pytest.mark.parametrize("task", TASKS)
def test_trained_state_round_trip(checkpoint, task):
    model, other = build(make_spec(task), checkpoint), build(make_spec(task, unet="random"), checkpoint, seed=9)
    batch = make_batch()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)  # The depth decoder starts constant.
    assert not torch.equal(model(batch), other(batch))
    state = model.trained_state()
    assert all(x.is_contiguous() and x.device.type == "cpu" for x in state.values())
    other.load_trained_state(state)
    assert torch.equal(model(batch), other(batch))
    with torch.no_grad():
        next(model.unet.parameters()).add_(1.0)
    assert torch.equal(other.trained_state()["unet.conv_in.weight"], state["unet.conv_in.weight"])


def test_weights_that_do_not_fit_are_named(checkpoint):
    model = build(make_spec("segmentation"), checkpoint)
    state = model.trained_state()
    del state["adapter.gamma"], state["unet.conv_in.bias"]
    state["zebra"] = torch.zeros(1)
    state["head.conv_seg.bias"] = torch.zeros(7)
    before = model.trained_state()
    message = (
        "2 missing, first 'adapter.gamma'; 1 unexpected, first 'zebra'; 1 of another shape, first 'head.conv_seg.bias'"
    )
    with pytest.raises(UserError, match=message):
        model.load_trained_state(state)
    assert all(torch.equal(x, before[name]) for name, x in model.trained_state().items())


def test_a_random_unet_differs_but_head_and_adapter_start_alike(checkpoint):
    pretrained, fresh = (build(make_spec("segmentation", unet=x), checkpoint) for x in ("pretrained", "random"))
    again, other = (
        build(make_spec("segmentation", unet="random"), checkpoint),
        build(make_spec("segmentation"), checkpoint, 1),
    )
    ours, theirs = pretrained.trained_state(), fresh.trained_state()
    assert not torch.equal(ours["unet.conv_in.weight"], theirs["unet.conv_in.weight"])
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if n.startswith(("head.", "adapter.")))
    assert all(torch.equal(x, theirs[n]) for n, x in again.trained_state().items())
    assert not torch.equal(ours["head.conv_seg.weight"], other.trained_state()["head.conv_seg.weight"])


# ------------------------------------------------------------------------------------------------------------------- cache
def test_latents_are_encoded_alone_once_and_within_bounds(checkpoint):
    model = build(make_spec("segmentation"), checkpoint)
    batch = make_batch()
    latent = 4 * 16 * 16 * 4
    model.latents = LatentCache(max_bytes=latent)
    plain = model(batch)
    first = model(batch | {"key": ["a", "b"]})
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(batch | {"key": ["a", "b"]}), first)
    cache = model.latents
    assert (cache.hits, cache.misses, len(cache), cache.bytes) == (1, 3, 1, latent)
    flipped = {"image": batch["image"].flip(0)}
    model.latents = LatentCache(max_bytes=2 * latent)
    assert torch.equal(model(flipped | {"key": ["b", "a"]}).flip(0), first)


def test_a_key_with_another_image_size_is_another_latent(checkpoint):
    model = build(make_spec("segmentation"), checkpoint)
    model(make_batch() | {"key": ["a", "b"]})
    assert model(make_batch(48, 48) | {"key": ["a", "b"]}).shape == (2, 3, 12, 12)


# ------------------------------------------------------------------------------------------------------------------- heads
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


def test_dropout_of_channels_is_active_in_training_only(checkpoint):
    model = build(make_spec("segmentation", head={"dropout": 0.9}), checkpoint)
    batch = make_batch()
    assert torch.equal(model(batch), model(batch))
    model.head.dropout.train()
    assert not torch.equal(model(batch), model(batch))


# ------------------------------------------------------------------------------------------------------------------ losses
def test_cross_entropy_averages_over_all_or_valid_pixels():
    """G12: half of the pixels ignored halves the loss of the released training."""
    logits, label = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    label[:, :4] = 255
    valid = F.cross_entropy(logits, label, ignore_index=255)
    for average, expected in (("valid-pixels", valid), ("all-pixels", valid / 2)):
        spec = LossSpec(kind="cross-entropy", average=average)
        torch.testing.assert_close(loss(spec, logits, {"label": label}), expected)


def test_cross_entropy_weighs_classes_as_torch_does():
    logits, label = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    spec = LossSpec(kind="cross-entropy", class_weights=(0.9, 1.1))
    expected = F.cross_entropy(logits, label, weight=torch.tensor([0.9, 1.1]))
    torch.testing.assert_close(loss(spec, logits, {"label": label}), expected)


def test_cross_entropy_enlarges_logits_to_the_label():
    logits, label = torch.randn(1, 3, 4, 6), torch.randint(0, 3, (1, 16, 24))
    larger = F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    spec = LossSpec(kind="cross-entropy")
    torch.testing.assert_close(loss(spec, logits, {"label": label}), F.cross_entropy(larger, label))


def test_silog_by_hand():
    """d = (ln 2, 0) over the two known pixels: sqrt(ln2^2 / 2 - 0.5 (ln2 / 2)^2)."""
    prediction, truth = torch.tensor([2.0, 3.0, 5.0]), torch.tensor([1.0, 3.0, 0.0])
    value = loss(LossSpec(kind="silog"), prediction.view(1, 1, 1, 3), {"depth": truth.view(1, 1, 3)})
    log2 = torch.tensor(2.0).log()
    torch.testing.assert_close(value, (log2**2 / 2 - 0.5 * (log2 / 2) ** 2).sqrt())


@pytest.mark.parametrize("average", ["valid-pixels", "all-pixels"])
def test_losses_are_finite_where_nothing_is_known_or_predicted(average):
    """D18: a prediction of zero metres; and batches without any valid pixel."""
    zero = torch.zeros(1, 1, 2, 2, requires_grad=True)
    value = loss(LossSpec(kind="silog"), zero, {"depth": torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])})
    nothing = loss(LossSpec(kind="silog"), zero, {"depth": torch.zeros(1, 2, 2)})
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    ignored = loss(LossSpec(kind="cross-entropy", average=average), logits, {"label": torch.full((1, 2, 2), 255)})
    (value + nothing + ignored).backward()
    assert nothing.item() == ignored.item() == 0.0
    assert value.isfinite()
    assert zero.grad.isfinite().all()
    assert not logits.grad.any()


def test_set_processors_leaves_no_attention_layer_out(wide):
    unet = UNet2DConditionModel.from_pretrained(wide / "unet")
    set_processors(unet, attention())
    kinds = {type(p).__name__ for p in unet.attn_processors.values()}
    assert kinds == {"SelfAttention", "CrossAttention"}
