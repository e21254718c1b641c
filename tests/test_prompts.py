"""Prompts are encoded as CLIP does it, once, and independently of what else is in the batch."""

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from fixtures.parity.narrow import write_checkpoint
from vpd.config.schema import PromptSpec
from vpd.models.prompts import encode_prompts, imagenet_templates
from vpd.models.text import load_text_encoder
from vpd.utils.errors import UserError

CLASSES = ["wall", "dining_room", "kitchen"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return load_text_encoder(checkpoint, length=12)


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


def test_there_are_eighty_templates():
    assert len(set(imagenet_templates())) == len(imagenet_templates()) == 80
    assert all(template.count("{}") == 1 and template == template.strip() for template in imagenet_templates())


def test_each_sentence_is_encoded_alone_and_once(checkpoint):
    encoder = load_text_encoder(checkpoint, length=12)
    together = encoder(["red ball", "left box", "red ball"])
    assert (encoder.cache.hits, encoder.cache.misses) == (1, 2)
    alone = load_text_encoder(checkpoint, length=12)
    assert torch.equal(together, torch.cat([alone([s]) for s in ("red ball", "left box", "red ball")]))


def test_mistakes_name_the_cure(checkpoint, encoder, tmp_path):
    with pytest.raises(UserError, match=r"length is 21, but the text model in .* takes at most 20"):
        load_text_encoder(checkpoint, length=21)
    with pytest.raises(UserError, match="strategy is 'class-names', but the dataset has no classes"):
        encode_prompts(prompt(), encoder, [])
    with pytest.raises(UserError, match="has no folder tokenizer/"):
        load_text_encoder(tmp_path, length=12)
