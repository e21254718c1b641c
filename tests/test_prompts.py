"""Prompts are encoded as CLIP does it, once, and independently of what else is in the batch."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from fixtures.parity.narrow import write_checkpoint
from vpd.config.schema import AdapterSpec, PromptSpec
from vpd.models.prompts import TextAdapter, TextEncoder, encode_prompts, imagenet_templates
from vpd.utils.errors import UserError

CLASSES = ["wall", "dining_room", "kitchen"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return TextEncoder(checkpoint, length=12)


def prompt(**settings) -> PromptSpec:
    return PromptSpec(**{"strategy": "class-names", "templates": "single", "length": 12} | settings)


def reference(checkpoint, sentences: list[str], length: int = 12):
    """transformers' own outputs for sentences padded to ``length``, without a mask."""
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    model = CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    with torch.no_grad():
        return model(input_ids=tokenizer(sentences, **options).input_ids)


def test_pooled_tokens_are_those_of_transformers(checkpoint, encoder):
    sentences = ["a photo of a kitchen", "", "red ball", "the left box of the dining room and a zebra"]
    torch.testing.assert_close(encoder.pooled(sentences), reference(checkpoint, sentences).pooler_output)
    torch.testing.assert_close(encoder.pooled(sentences)[2:3], encoder.pooled(["red ball"]))


def test_class_names_take_one_template_or_the_mean_of_eighty(checkpoint, encoder):
    single = encode_prompts(prompt(), encoder, CLASSES)
    sentences = ["a photo of a wall", "a photo of a dining room", "a photo of a kitchen"]
    torch.testing.assert_close(single, reference(checkpoint, sentences).pooler_output)
    many = encode_prompts(prompt(strategy="scene", templates="imagenet-80"), encoder, CLASSES)
    rooms = [template.replace("{}", "dining room") for template in imagenet_templates()]
    torch.testing.assert_close(many[1], reference(checkpoint, rooms).pooler_output.mean(0))
    assert many.shape == single.shape == (3, 32)
    assert len(set(imagenet_templates())) == len(imagenet_templates()) == 80
    assert all(template.count("{}") == 1 and template == template.strip() for template in imagenet_templates())


def test_each_sentence_is_encoded_alone_and_once(checkpoint):
    encoder = TextEncoder(checkpoint, length=12)
    together = encoder(["red ball", "left box", "red ball"])
    assert (encoder.cache.hits, encoder.cache.misses) == (1, 2)
    alone = TextEncoder(checkpoint, length=12)
    assert torch.equal(together, torch.cat([alone([s]) for s in ("red ball", "left box", "red ball")]))


def test_the_adapter_adds_a_scaled_perceptron_per_channel():
    adapter = TextAdapter(4, AdapterSpec(enabled=True, gamma=1e-4))
    assert torch.equal(adapter.gamma, torch.full((4,), 1e-4))
    context = torch.randn(2, 3, 4)
    with torch.no_grad():
        adapter.gamma.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
        first, _, second = adapter.fc
        hidden = context @ first.weight.T + first.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        expected = context + adapter.gamma * (hidden @ second.weight.T + second.bias)
        torch.testing.assert_close(adapter(context), expected)


def test_mistakes_name_the_cure(checkpoint, encoder, tmp_path):
    with pytest.raises(UserError, match=r"length is 21, but the text model in .* takes at most 20"):
        TextEncoder(checkpoint, length=21)
    with pytest.raises(UserError, match="strategy is 'class-names', but the dataset has no classes"):
        encode_prompts(prompt(), encoder, [])
    with pytest.raises(UserError, match="has no folder tokenizer/"):
        TextEncoder(tmp_path, length=12)
