"""The network keeps its contract for any width and size; its features are those of diffusers' own forward."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fixtures.parity.narrow import CLASSES, attention, build, make_batch, make_spec
from vpd.models import LatentCache
from vpd.models.diffusion import FeatureUNet
from vpd.utils.errors import UserError

TASKS = ("segmentation", "referring", "depth")
TOKENS = 3


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


@pytest.mark.parametrize("task", TASKS)
def test_every_trained_tensor_gets_a_gradient_and_no_frozen_one(checkpoint, task):
    model = build(make_spec(task), checkpoint).train()
    model(make_batch()).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith(("vae.", "text."))}
    assert {name.split(".")[0] for name in trained} == {"unet", "adapter", "head"}
    assert not any(module.training for part in (model.vae, model.text) if part for module in part.modules())
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


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize(
    ("places", "levels"), [((), {1, 2}), (("down",), set()), (("up",), set()), (("mid",), {1, 2, 3})]
)
def test_rows_of_an_ablation_start_from_the_same_head(checkpoint, adapter, places, levels):
    """At ``levels`` one has attention maps and the other, of down and up blocks, has none, or the reverse.

    Weights for the U-Net's own channels agree there but for their scale.
    """
    changed = {"adapter": {"enabled": adapter, "gamma": 1e-4}, "attention": attention(places).model_dump()}
    row, whole = (build(make_spec("segmentation", **x), checkpoint).head.state_dict() for x in (changed, {}))
    of_other_width = set()
    for name, weight in row.items():
        other = whole[name]
        if weight.shape != other.shape:
            of_other_width.add(name.removesuffix(".weight"))
            shared = min(weight.shape[1], other.shape[1])
            weight, other = (x[:, :shared] / x[0, 0] for x in (weight, other))
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=0)
    assert of_other_width == {f"neck.lateral_convs.{level}" for level in levels}


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
    assert model(make_batch(48, 48) | {"key": ["a", "b"]}).shape == (2, 3, 12, 12)  # another size is another latent


@torch.no_grad()
@pytest.mark.parametrize("task", ["segmentation", "referring"])
def test_a_network_that_was_used_can_change_its_precision(checkpoint, task):
    batch = make_batch() | {"key": ["a", "b"], "text": ["a red ball", "a lamp"]}
    used, fresh = (build(make_spec(task), checkpoint).eval() for _ in range(2))
    fresh.load_state_dict(used.state_dict())
    used(batch)
    batch["image"] = batch["image"].bfloat16()
    assert torch.equal(used.bfloat16()(batch), fresh.bfloat16()(batch))
