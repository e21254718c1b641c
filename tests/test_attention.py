"""Cross-attention maps are recorded where, and only where, the spec says, and cost no gradient unless asked."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from fixtures.parity.narrow import attention, build, make_batch, make_spec, with_training
from vpd.models.attention import CrossAttention
from vpd.models.diffusion import FeatureUNet
from vpd.utils.errors import UserError


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
