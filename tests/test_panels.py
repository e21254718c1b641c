"""Panels: what is drawn, where, and with which bytes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from evaluation_fakes import CLASSES, Drawings, SmallModel, make_spec
from families import write_family
from vpd.evaluation.attention import attention_of, class_words, records_attention, sentence_words
from vpd.evaluation.drawing import palette
from vpd.evaluation.panels import coloured, draw_panels, legend_classes, spread
from vpd.evaluation.run import predictor
from vpd.models.extractor import FeatureExtractor
from vpd.models.network import build_vpd
from vpd.models.text import load_text_encoder
from vpd.pretraining.clip import train_tokenizer

METRICS = {
    "segmentation": {"miou_ss": 31.4, "miou_ms": 33.3},
    "referring": {"oiou": 55.5, "miou": 50.1},
    "depth": {"rmse": 0.512, "delta1": 0.871},
}


def model_for(task: str) -> SmallModel:
    """A small model; for expressions with a real tokenizer that splits words into pieces."""
    model = SmallModel(task)
    if task == "referring":
        model.text = torch.nn.Module()
        model.text.tokenizer = train_tokenizer(["the red ball on the floor"] * 3, 520, 12)
    return model


def draw(task: str, folder) -> None:
    spec, model = make_spec(task), model_for(task)
    with torch.inference_mode():
        draw_panels(spec, model, predictor(spec, model), Drawings(task), METRICS[task], folder)


@pytest.mark.parametrize("task", METRICS)
def test_panels_are_the_same_bytes_every_time_and_say_nothing_about_software(tmp_path, task):
    names = ["predictions.png"] if task == "depth" else ["attention.png", "predictions.png"]
    for folder in ("one", "two"):
        torch.manual_seed(0)
        draw(task, tmp_path / folder)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        with Image.open(tmp_path / "one" / name) as picture:
            assert min(picture.size) > 250
            assert not {"Software", "Creation Time"} & set(picture.info)


# --------------------------------------------------------------------------------------------------------------- parts
def test_the_first_twenty_classes_and_all_150_have_colours_of_their_own():
    assert len(np.unique(palette(20).round(3), axis=0)) == 20
    assert len(np.unique(palette(150).round(3), axis=0)) == 150
    assert np.array_equal(palette(150)[:5], palette(5))


def test_ignored_pixels_get_the_colour_of_no_class():
    labels = torch.tensor([[0, 4, 255]])
    picture = coloured(labels, palette(5))
    assert np.array_equal(picture[0, :2], palette(5)[[0, 4]])
    assert not (palette(5) == picture[0, 2]).all(1).any()


def test_the_legend_lists_what_is_shown_largest_first():
    maps = [torch.tensor([[0, 0, 3, 255]]), torch.tensor([[3, 3, 1, 255]])]
    assert legend_classes(maps, 5) == [3, 0, 1]


@pytest.mark.parametrize(("count", "wanted", "expected"), [(100, 4, [12, 37, 62, 87]), (3, 4, [0, 1, 2]), (5, 1, [2])])
def test_panel_samples_are_spread_over_the_split(count, wanted, expected):
    assert spread(count, wanted) == expected


# ----------------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize(
    ("task", "places", "strategy", "expected"),
    [
        ("segmentation", ("up",), "class-names", True),
        ("segmentation", (), "class-names", False),
        ("segmentation", ("up",), "empty", False),
        ("referring", ("up",), "expression", True),
        ("depth", ("up",), "scene", False),
    ],
)
def test_attention_is_shown_where_maps_belong_to_words(task, places, strategy, expected):
    spec = make_spec(task, model={"attention": {"places": places}, "prompt": {"strategy": strategy}})
    assert records_attention(spec) is expected


def test_attention_is_the_mean_of_the_enlarged_levels():
    model, batch = SmallModel("segmentation"), {"image": torch.rand(2, 3, 32, 32)}
    _, fine, coarse = model.features(batch).attention
    expected = (F.interpolate(fine, (32, 32), mode="bilinear") + F.interpolate(coarse, (32, 32), mode="bilinear")) / 2
    assert torch.allclose(attention_of(model)(batch), expected, atol=1e-6)


def test_class_words_are_the_classes_in_the_image_with_their_own_maps():
    """An attention that is exactly one over the pixels of a class's colour, seen through several windows."""
    spec = make_spec("segmentation", {"short_side": 40, "long_side": 160})
    sample = Drawings("segmentation").sample(1)

    def attention(batch: dict) -> torch.Tensor:
        red = batch["image"][:, :1] > batch["image"][:, 1:2] + 0.8
        return torch.cat([(red == (index == 2)).float() for index in range(len(CLASSES))], 1)

    words = dict(class_words(sample, attention, spec, CLASSES))
    present = [CLASSES[index] for index in sample["label"].unique().tolist() if index != 255]
    assert sorted(words) == sorted(present)
    assert torch.equal(words["ball"] > 0.5, sample["image"][0] > sample["image"][1].int() + 100)
    sizes = [int((sample["label"] == CLASSES.index(word)).sum()) for word in words]
    assert sizes == sorted(sizes, reverse=True)


def test_words_of_a_sentence_average_the_maps_of_their_pieces():
    tokenizer = model_for("referring").text.tokenizer
    sample = {**Drawings("referring").sample(0), "text": "the cat"}
    maps = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 4, 4)
    pieces = tokenizer.tokenize("the cat")
    assert len(pieces) > 2
    first = next(i for i, piece in enumerate(pieces) if piece.endswith("</w>")) + 1
    words = sentence_words(sample, lambda batch: maps, tokenizer, 12)
    assert [word for word, _ in words] == ["the", "cat"]
    means = [word[1][0, 0].item() for word in words]
    assert means == pytest.approx([np.mean(range(1, first + 1)), np.mean(range(first + 1, len(pieces) + 1))])


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    return write_family("pixart-alpha", tmp_path_factory.mktemp("pixart"))


@torch.no_grad()
def test_attention_of_a_transformer_is_that_of_its_blocks_though_the_head_sees_a_pyramid(pixart):
    spec = make_spec("segmentation", model={"adapter": {"enabled": False}})
    model = build_vpd(spec, pixart, CLASSES).eval()
    image = torch.rand(2, 3, 32, 48)
    (maps,) = FeatureExtractor(pixart)(image, classes=CLASSES).attention
    expected = F.interpolate(maps, (32, 48), mode="bilinear")
    batch = {"image": image * 2 - 1, "key": ["a", "b"]}
    torch.testing.assert_close(attention_of(model)(batch), expected, rtol=1e-4, atol=1e-5)
    assert not model.unet._forward_hooks


def test_words_of_a_sentence_that_t5_reads_average_the_maps_of_their_pieces(pixart):
    tokenizer = load_text_encoder(pixart).tokenizer
    sample = {**Drawings("referring").sample(0), "text": "Red zebra ball"}
    maps = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 4, 4)
    assert tokenizer.tokenize("red zebra ball") == ["▁red", "▁", *"zebra", "▁ball"]
    words = sentence_words(sample, lambda batch: maps, tokenizer, 12)
    assert [(word, heat[0, 0].item()) for word, heat in words] == [("red", 0), ("zebra", 3.5), ("ball", 7)]
