"""Features and word maps of any Stable Diffusion are those that VPD computes, for images of every kind and size."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from vpd.config.params import merge
from vpd.datasets.dataset import image_tensor
from vpd.datasets.images import save_png
from vpd.datasets.transforms import normalise
from vpd.models.diffusion import load_denoiser, load_vae
from vpd.models.extractor import FeatureExtractor
from vpd.models.network import build_vpd
from vpd.models.text import load_text_encoder
from vpd.utils.errors import UserError

SENTENCE = "a photo of a red ball"


@pytest.fixture(scope="module")
def pipeline(checkpoint) -> StableDiffusionPipeline:
    text = load_text_encoder(checkpoint)
    parts = {"text_encoder": text.model, "tokenizer": text.tokenizer, "scheduler": DDIMScheduler()}
    networks = {"unet": load_denoiser(checkpoint, "pretrained"), "vae": load_vae(checkpoint)}
    return StableDiffusionPipeline(
        **parts, **networks, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def extractor(pipeline) -> FeatureExtractor:
    return FeatureExtractor(pipeline)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def equal(one, other) -> bool:
    maps = zip([*one.maps, *one.attention], [*other.maps, *other.attention], strict=True)
    return all((a is None and b is None) or torch.equal(a, b) for a, b in maps)


@torch.no_grad()
@pytest.mark.parametrize("source", ["object", "folder"])
def test_features_are_those_of_vpd_to_the_bit(checkpoint, pipeline, specs, image, source):
    spec = specs["segmentation"]
    changes = {"adapter": {"enabled": False, "gamma": 0.0}, "prompt": {"length": 20}}
    plain = type(spec.model).model_validate(merge(spec.model.model_dump(), changes))
    classes = ["wall", "bed", "living room"]
    network = build_vpd(spec.model_copy(update={"model": plain}), checkpoint, classes).eval()
    expected = network.features({"image": image_tensor(normalise(image))[None]})
    extractor = FeatureExtractor(pipeline if source == "object" else checkpoint, timestep=plain.timestep)
    found = extractor(image, classes=classes)
    assert found.strides == expected.strides
    for level, joined in enumerate(expected.maps):
        recorded = [] if found.attention[level] is None else [found.attention[level]]
        assert torch.equal(torch.cat([found.maps[level], *recorded], dim=1), joined)
    assert [maps is not None for maps in found.attention] == [maps is not None for maps in expected.attention]


def test_the_pipeline_stays_as_it_was_and_its_weights_are_not_copied(pipeline, extractor, image):
    before = {name: type(processor) for name, processor in pipeline.unet.attn_processors.items()}
    weights = {name: weight.data_ptr() for name, weight in pipeline.unet.named_parameters()}
    extractor(image, SENTENCE)
    assert {name: type(processor) for name, processor in pipeline.unet.attn_processors.items()} == before
    own = {name: weight.data_ptr() for name, weight in extractor.unet.named_parameters()}
    assert own.items() <= weights.items()
    assert len(own) > 100


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (36, 100), (250, 130), (1024, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_size_batch_and_precision(checkpoint, size, dtype):
    extractor = FeatureExtractor(checkpoint, places=["down", "mid", "up"], limit=1.0).to(dtype=dtype)
    height, width = size
    found = extractor(torch.rand(2, 3, height, width), [SENTENCE, "a lamp"])
    for maps, stride, attention in zip(found.maps, found.strides, found.attention, strict=True):
        assert maps.shape[0] == 2
        assert maps.dtype == dtype
        assert abs(maps.shape[2] - height / stride) <= 1
        assert abs(maps.shape[3] - width / stride) <= 1
        assert attention.shape == (2, extractor.text.length, *maps.shape[2:])
        torch.testing.assert_close(attention.float().sum(dim=1), torch.ones(2, *maps.shape[2:]), atol=0.03, rtol=0)
    assert found.attention_of("a").shape == (2, height, width)


def test_gradients_reach_the_image_the_weights_and_the_maps(checkpoint, image):
    extractor = FeatureExtractor(checkpoint, gradient_checkpointing=True)
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    found = extractor(pixels, SENTENCE)
    found.attention_of("ball").square().sum().backward(retain_graph=True)
    by_maps = pixels.grad.clone()
    found.maps[0].square().mean().backward()
    assert by_maps.abs().sum() > 0
    assert not torch.equal(pixels.grad, by_maps)
    assert extractor.unet.conv_in.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_images_of_every_kind_give_the_same(extractor, image, tmp_path):
    save_png(tmp_path / "image.png", image)
    expected = extractor(image, SENTENCE)
    floats = torch.from_numpy(image).permute(2, 0, 1)
    transparent = np.concatenate([image, np.full((48, 64, 1), 255, np.uint8)], axis=2)
    for same in (
        str(tmp_path / "image.png"), tmp_path / "image.png", Image.fromarray(image), image[None], [image], floats,
        transparent, image / 255,
    ):  # fmt: skip
        assert equal(extractor(same, SENTENCE), expected)
    several = extractor([image, floats, tmp_path / "image.png"], [SENTENCE] * 3)
    for maps, alone in zip(several.maps, expected.maps, strict=True):
        torch.testing.assert_close(maps, alone.expand_as(maps), atol=1e-4, rtol=1e-4)
    assert extractor(image[..., 0]).maps[0].shape == expected.maps[0].shape  # grey


@torch.no_grad()
def test_without_a_text_no_attention_is_shown(extractor, image):
    found = extractor(image)
    assert found.attention == [None] * len(found.maps)
    with pytest.raises(UserError, match="no attention was recorded; give a text"):
        found.attention_of("ball")


@torch.no_grad()
def test_a_phrase_looks_where_its_words_look(extractor, image):
    found = extractor([image, image], ["a red ball", "the ball is red"])
    alone = found.attention_of("red") + found.attention_of("ball")
    torch.testing.assert_close(found.attention_of("red ball"), alone / 2)
    level = next(maps for maps in found.attention if maps is not None)
    assert found.attention_of("ball", tuple(level.shape[2:])).shape == level[:, 0].shape
    with pytest.raises(UserError, match=r"the text has no word 'zebra'; .*ball"):
        found.attention_of("zebra")


def test_words_of_tokens(extractor):
    text = extractor.text
    words = text.words("a Kitchen, zzyzx")
    assert len(words) == text.length
    assert words[0] == ""
    assert list(dict.fromkeys(words[1:])) == ["a", "kitchen", ",", "zzyzx", ""]
    assert words.count("zzyzx") == len(text.tokenizer.tokenize("zzyzx"))
    long = text.words(100 * "ball ")
    parts = len(text.tokenizer.tokenize("ball"))
    whole = (text.length - 2) // parts * parts
    assert long[: 1 + whole] == ["", *["ball"] * whole]
    assert long[-1] == ""
    assert len(long) == text.length


@torch.no_grad()
def test_a_text_that_is_not_seen_whole_is_said_once(extractor, image, caplog):
    long = "a red ball " * 40
    tokens = len(extractor.text.tokenizer(long, verbose=False).input_ids)
    sentence = f"the text has {tokens} tokens, of which the network sees {extractor.text.length}; shorten it"
    with pytest.warns(UserWarning, match=sentence) as said:
        extractor([image, image], [long, long])
    assert len(said) == 1
    assert not caplog.records
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(image, SENTENCE)


@torch.no_grad()
def test_a_text_is_encoded_anew_in_another_precision(checkpoint, image):
    moved = FeatureExtractor(checkpoint)
    moved(image, SENTENCE)
    moved.to(torch.bfloat16)
    found, expected = (each(image, SENTENCE) for each in (moved, FeatureExtractor(checkpoint).to(torch.bfloat16)))
    assert all(map(torch.equal, found.maps, expected.maps))


class Other:
    tokenizer = None


MISTAKES = {
    "no image": (lambda call, image: call([]), "there are no images"),
    "a number": (lambda call, image: call(3), "images are a int; give one image"),
    "two sizes": (lambda call, image: call([image, image[:20]]), r"different sizes \(64x20, 64x48\)"),
    "floats beyond one": (lambda call, image: call(torch.full((3, 8, 8), 2.0)), "values from 2 to 2; scale"),
    "NaN": (lambda call, image: call(np.full((8, 8, 3), np.nan)), "values from nan to nan; scale"),
    "channels last": (lambda call, image: call(torch.rand(8, 8, 3)), r"tensor of shape \(8, 8, 3\); give \(3, H, W\)"),
    "channels first": (lambda call, image: call(np.zeros((3, 8, 8), np.uint8)), r"array of shape \(3, 8, 8\)"),
    "integers": (lambda call, image: call(np.zeros((8, 8, 3), np.int64)), "int64 values; give uint8"),
    "grey integers": (lambda call, image: call(np.full((8, 8), 200, np.int32)), "int32 values; give uint8"),
    "signed grey": (lambda call, image: call(np.full((8, 8), 100, np.int8)), "int8 values; give uint8"),
    "a class that is no list": (lambda call, image: call(image, classes="cone"), r"the text 'cone'; .* \['cone'\]"),
    "complex": (lambda call, image: call(np.zeros((8, 8, 3), complex)), "complex128 values; give uint8"),
    "none": (lambda call, image: call([None]), "image 0 is a NoneType; give a path"),
    "no file": (lambda call, image: call("no/such.png"), "no/such.png does not exist"),
    "text and classes": (lambda call, image: call(image, "a", classes=["a"]), "both texts and classes are given"),
    "too few texts": (lambda call, image: call([image] * 3, ["a"]), "there are 1 texts for 3 images"),
    "no class": (lambda call, image: call(image, classes=[]), "the dataset has no classes"),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(extractor, image, name):
    make, sentence = MISTAKES[name]
    with pytest.raises(UserError, match=sentence):
        make(extractor, image)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pipeline": Path("no/such")}, "no/such does not exist"),
        ({"pipeline": "no/such"}, r"no/such is no folder, and diffusers cannot load it as a repository \(.+\); check"),
        ({"pipeline": "no such:name"}, "no such:name is no folder, and diffusers cannot load it"),
        ({"pipeline": Other()}, "this Other is no Stable Diffusion pipeline"),
        ({"timestep": 1000}, "timestep is 1000; give 0 to 999"),
        ({"places": ["side"]}, "the options: places.*'down', 'mid' or 'up'"),
        ({"limit": 0.01}, "records no map at 'down'"),
    ],
)
def test_a_wrong_option_is_one_sentence(pipeline, options, sentence):
    with pytest.raises(UserError, match=sentence):
        FeatureExtractor(**{"pipeline": pipeline, **options})


def test_a_network_that_needs_more_than_a_text_is_refused(pipeline):
    config = dict(pipeline.unet.config) | {"class_embed_type": "timestep"}
    other = StableDiffusionPipeline(
        **{**pipeline.components, "unet": UNet2DConditionModel.from_config(config)}, requires_safety_checker=False
    )
    with pytest.raises(UserError, match=r"needs more than a text \(class_embed_type=timestep\)"):
        FeatureExtractor(other)
