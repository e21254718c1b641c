"""Measures of the small Stable Diffusion, against references and cases with known answers."""

from __future__ import annotations

import csv
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pretraining_fakes import SPEC
from vpd.config.schema import OracleSpec
from vpd.datasets.images import read_image, save_jpeg
from vpd.measures.frechet import frechet_distance
from vpd.measures.listening import listening
from vpd.measures.oracle import Verdict, choose_threshold, known_pairs, share_found, shares, softened, train_oracle
from vpd.measures.pointing import ATTENTION, CLASSES, Scores, area_under_curve, class_tokens, pointing
from vpd.measures.results import CHANCE, REAL, write_measures
from vpd.measures.run import Judge
from vpd.measures.scenes import PAIRS, ROOMS, Scenes, held_out
from vpd.models.attention import set_processors
from vpd.pretraining.clip import train_tokenizer
from vpd.pretraining.diffusion.denoiser import build_scheduler, build_unet
from vpd.pretraining.loop import generator_of
from vpd.pretraining.workdir import Workdir
from vpd.world.scene import draw_scene
from vpd.world.seeds import unseen_seed

SIZE = (32, 48)


@pytest.fixture
def workdir(tmp_path) -> Workdir:
    return Workdir(tmp_path, 0, 100, torch.device("cpu"))


def scenes_with(images: Tensor, things: Tensor, rooms: Tensor, asked: Tensor) -> Scenes:
    """Scenes without classes and texts."""
    return Scenes(images, torch.zeros_like(things), things, rooms, asked, [""] * len(images), [[""]] * len(images))


# --------------------------------------------------------------------------------------------------------------- scenes
def test_held_out_scenes_say_what_they_show(workdir):
    scenes = held_out("measure", 12, SIZE, workdir)
    assert scenes.images.shape == (12, 3, *SIZE)
    assert scenes.captioned.size == SIZE
    for index in range(12):
        name, colour = PAIRS[scenes.asked[index]]
        room = ROOMS[scenes.rooms[index]].replace("_", " ")
        assert (
            scenes.prompts[index].split(" ", 1)[1]
            == f"{room} with {'an' if colour == 'orange' else 'a'} {colour} {name}"
        )
        assert scenes.present[index, scenes.asked[index]]
        assert all(text for text in scenes.captions[index])
        assert (scenes.labels[index] == CLASSES.index(name) + 1).sum() >= scenes.areas[index, scenes.asked[index]]


def test_held_out_scenes_are_like_those_of_datasets_and_are_drawn_once(workdir, tmp_path):
    scenes = held_out("choose", 3, SIZE, workdir)
    drawn = draw_scene(unseen_seed(0, "choose", 0), SIZE[1], SIZE[0])
    save_jpeg(tmp_path / "image.jpg", drawn.picture.image)
    np.testing.assert_array_equal(scenes.images[0].permute(1, 2, 0), read_image(tmp_path / "image.jpg"))
    again = held_out("choose", 3, SIZE, workdir)
    assert all(
        torch.equal(getattr(again, key), getattr(scenes, key)) for key in ("images", "labels", "things", "asked")
    )
    assert (again.prompts, again.captions) == (scenes.prompts, scenes.captions)
    assert held_out("measure", 3, SIZE, workdir).prompts != scenes.prompts


# --------------------------------------------------------------------------------------------------------------- oracle
def test_threshold_finds_as_many_things_as_there_are():
    shown, nothing = torch.zeros(2, 64, 64, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    shown[0, :20, :20], shown[1, :20, :20], shown[1, -2:, -2:] = 3 + 1, 5 + 1, 7 + 1  # the last is too small to ask for
    scenes = scenes_with(torch.zeros(2, 3, 64, 64), shown, nothing, nothing)
    assert scenes.areas[1, [5, 7]].tolist() == [400, 4]
    things = torch.full((2, len(PAIRS)), 0.1)
    things[0, 3], things[1, 5], things[1, 7], things[0, 9] = 0.8, 0.6, 0.9, 0.7
    # Two are there: the best is right, the second best is made up, and what is missed is the third best.
    assert choose_threshold(things, scenes) == pytest.approx(0.7)
    assert known_pairs(scenes).sum() == 2 * len(PAIRS) - 1


def test_share_found_is_that_of_the_things_and_rooms_asked_for():
    things = torch.full((4, len(PAIRS)), 0.9)
    things[:, 1] = torch.tensor([0.5, 0.51, 0.2, 0.9])
    verdict = Verdict(things, torch.tensor([0, 1, 2, 2]), torch.zeros(4, 1))
    shares = share_found(verdict, 0.5, torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 2, 0]))
    assert shares == {"thing": 0.75, "room": 0.5}
    assert share_found(verdict, 0.5, torch.tensor([0, 1, 0, 1]), torch.zeros(4))["thing"] == 1.0


def test_shares_of_cells():
    things = torch.zeros(1, 8, 12, dtype=torch.uint8)
    things[0, :4, :4], things[0, 4:6, 4:8], things[0, 7, 11] = 1, 2, len(PAIRS)
    share = shares(things)
    assert share.shape == (1, 1 + len(PAIRS), 2, 3)
    assert (share[0, 1, 0, 0], share[0, 2, 1, 1], share[0, -1, 1, 2]) == (1.0, 0.5, 1 / 16)
    assert torch.equal(share.sum(dim=1), torch.ones(1, 2, 3))


def test_softened_images_lose_half_their_resolution_and_the_others_nothing():
    rows = torch.arange(6).view(1, 1, 6, 1).expand(1, 3, 6, 8)
    board, ramp = ((rows + torch.arange(8)) % 2).float(), rows.float()
    found = softened(torch.cat([board, board, ramp]), torch.tensor([True, False, True]))
    assert torch.equal(found[0], torch.full((3, 6, 8), 0.5))
    assert torch.equal(found[1], board[0])
    torch.testing.assert_close(found[2, 0, :, 0], torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0, 4.5]))


def test_oracle_learns_colours_wherever_they_are(workdir):
    """A square in one of two colours, anywhere: the oracle finds that one and not the other."""
    pairs, generator = (PAIRS.index(("box", "red")), PAIRS.index(("box", "blue"))), generator_of("squares")
    images = torch.full((64, 3, 32, 32), 200, dtype=torch.uint8)
    things = torch.zeros(64, 32, 32, dtype=torch.uint8)
    for index, (y, x) in enumerate(torch.randint(24, (64, 2), generator=generator).tolist()):
        images[index, :, y : y + 8, x : x + 8] = torch.tensor([220, 20, 20] if index % 2 else [20, 20, 220])[
            :, None, None
        ]
        things[index, y : y + 8, x : x + 8] = pairs[index % 2 == 0] + 1
    which = torch.arange(64) % 2
    asked = torch.where(which == 1, *pairs)
    rooms = which * 3
    scenes = scenes_with(images, things, rooms, asked)
    spec = OracleSpec(scenes=64, width=8, steps=60, batch_size=16, lr=1e-2)
    oracle, losses = train_oracle(spec, scenes, workdir)
    verdict = oracle.judge(images)
    threshold = choose_threshold(verdict.things, scenes)
    judge = Judge(oracle, threshold, verdict.features)
    assert losses[-1] < losses[0] / 4
    assert judge.rate(images, asked, rooms) == pytest.approx({"thing": 1.0, "room": 1.0, "frechet": 0.0}, abs=1e-3)
    assert judge.rate(images, asked.roll(1), rooms.roll(1))["thing"] == 0.0


# -------------------------------------------------------------------------------------------------------------- Fréchet
def test_frechet_distance_is_the_closed_form_of_gaussians():
    """``torch.cov`` of this sample is exactly ``covariance``, so that the distance is that of the two Gaussians."""
    basis = torch.randn(400, 3, generator=generator_of("frechet"), dtype=torch.float64)
    basis = basis - basis.mean(dim=0)
    white = torch.linalg.qr(basis).Q * 399**0.5
    scales, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0])
    # Commuting covariances: |m|^2 + sum (s1 - s2)^2.
    assert frechet_distance(white, white * scales + shift) == pytest.approx(1.25 + 0 + 1 + 4)
    assert frechet_distance(white, white) == pytest.approx(0.0, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator_of("turn"), dtype=torch.float64)).Q
    first, second = white * scales, (white * scales) @ turn
    one, two = torch.cov(first.T), torch.cov(second.T)
    roots = torch.linalg.eigvals(one @ two).real.clamp(min=0).sqrt().sum()
    expected = one.trace() + two.trace() - 2 * roots
    assert frechet_distance(first, second) == pytest.approx(expected.item())
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


def test_frechet_distance_knows_fewer_images_than_features():
    features = torch.randn(4, 9, generator=generator_of("few"))
    assert frechet_distance(features, features + 1) == pytest.approx(9.0, abs=1e-4)
    assert frechet_distance(features[:, :1], features[:, :1] * 2 + 1) > 0


# ------------------------------------------------------------------------------------------------------------- pointing
def test_area_under_the_curve_is_scikit_learns():
    random = np.random.default_rng(0)
    scores = random.integers(0, 9, (3, 200)) / 9  # with ties
    positive = random.random(200) < 0.3
    expected = [roc_auc_score(positive, row) for row in scores]
    np.testing.assert_allclose(area_under_curve(scores, positive), expected)


def test_area_under_the_curve_by_hand():
    positive = np.array([True, True, False, False])
    maps = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [1, 1, 1, 1], [4, 1, 3, 2], positive, ~positive], float)
    assert area_under_curve(maps, positive).tolist() == [1.0, 0.0, 0.5, 0.5, 1.0, 0.0]


def test_scores_average_images_before_classes():
    scores = Scores()
    for level, number, area in [("", 0, 1.0), ("", 0, 0.0), ("", 0, 0.2), ("", 1, 0.8), ("_8", 1, 0.3)]:
        scores.areas[level, number].append(area)
    assert scores.means() == pytest.approx({"": 0.6, "_8": 0.3})


def test_maps_of_several_levels_are_enlarged_and_averaged():
    """The class is the upper left; the coarse map points at the left half, the fine one exactly at the class."""
    coarse, fine, mask = torch.zeros(1, 2, 2), torch.zeros(1, 16, 16), torch.zeros(16, 16, dtype=torch.uint8)
    mask[:8, :8] = CLASSES.index("chair") + 1
    coarse[0, :, 0] = fine[0, :8, :8] = 1.0
    scores = Scores()
    scores.add([coarse, fine], {CLASSES.index("chair"): torch.tensor([0])}, mask)
    left = np.broadcast_to(np.interp((np.arange(16) + 0.5) / 8 - 0.5, [0, 1], [1, 0]), (16, 16))
    expected = roc_auc_score(mask.flatten() > 0, left.flatten())
    assert scores.means() == pytest.approx({"": 1.0, "_2": expected, "_16": 1.0})


def test_class_words_are_found_among_the_tokens():
    texts = ["a kitchen with a red ball", "a tablet", "a wooden floor and a chair", "the chair"] * 3
    tokenizer = train_tokenizer(texts, 560, 16)
    caption = "a chair, a tablet and a red ball left of the chair"
    tokens = [None, *tokenizer.tokenize(caption)]
    found = class_tokens(tokenizer, caption, 40)
    assert {CLASSES[number] for number in found} == {"chair", "ball"}  # a tablet is no table
    words = {CLASSES[number]: "".join(tokens[place] for place in places) for number, places in found.items()}
    assert words == {"chair": "chair</w>chair</w>", "ball": "ball</w>"}
    ball = min(found[CLASSES.index("ball")].tolist())
    assert CLASSES.index("ball") not in class_tokens(tokenizer, caption, ball + 1)  # cut off


def test_every_level_with_words_is_scored():
    unet = build_unet(SPEC.denoiser, 16, 16, SPEC.denoiser.heads)
    assert set_processors(unet, ATTENTION) == [0, 1, 2]


@pytest.mark.parametrize("sign", [1, -1])
def test_maps_of_the_classes_themselves_point_and_inverted_ones_point_away(sign, monkeypatch, workdir):
    scenes = held_out("measure", 3, SIZE, workdir)
    shown = torch.stack([scenes.labels == number + 1 for number in range(len(CLASSES))], dim=1).float()

    class Network(torch.nn.Module):
        def forward(self, latents: Tensor, timestep: int, context: Tensor) -> tuple[list, list]:
            assert timestep == 1
            # Maps of captions' tokens, of which class_tokens says which class each is.
            maps = (
                shown if context.shape[1] == len(CLASSES) else shown[:, [number % len(CLASSES) for number in range(20)]]
            )
            return [], [None, sign * maps]

    class Text:
        length, tokenizer = 20, None

        def __call__(self, captions: list[str]) -> Tensor:
            return torch.zeros(len(captions), 20, 1)

    replaced = {
        "load_text_encoder": lambda *_: Text(), "load_denoiser": lambda *_: None,
        "FeatureUNet": lambda *_: Network(), "encode_prompts": lambda *_: torch.zeros(len(CLASSES), 1),
        "PromptSpec": mock.MagicMock(), "class_tokens": lambda *_: {number: torch.tensor([number]) for number in range(16)},
    }  # fmt: skip
    for name, value in replaced.items():
        monkeypatch.setattr(f"vpd.measures.pointing.{name}", value)
    scores = pointing(Path("pipeline"), torch.zeros(3, 4, 2, 2), scenes, 1, torch.device("cpu"))
    keys = [f"{form}_auc{level}" for form in ("class", "word") for level in ("", f"_{SIZE[1]}")]
    assert scores == dict.fromkeys(keys, (sign + 1) / 2)


# ------------------------------------------------------------------------------------------------------------ listening
def test_a_denoiser_that_uses_the_text_pays_for_a_wrong_one():
    """Latents are constants that the context tells; from them and the noisy latents follows the noise."""
    truth = torch.linspace(-2, 2, 6)
    latents, contexts = truth[:, None, None, None].expand(6, 4, 3, 3), truth[:, None, None].expand(6, 2, 5)
    alphas, times = build_scheduler().alphas_cumprod, (100, 700)

    def reads(noisy: Tensor, steps: Tensor, context: Tensor) -> Tensor:
        share = alphas[steps][:, None, None, None]
        return (noisy - share.sqrt() * context[:, :1, :1, None]) / (1 - share).sqrt() + 0.1

    measured = listening(reads, latents, contexts, times, 0)
    assert measured["text_matters"] == 1.0
    # Each text is compared with the next one, 0.8 more, and the last with the first, 4 less. The cost of the right one is 0.1^2.
    for time in times:
        ratio = (alphas[time] / (1 - alphas[time])).sqrt().item()
        wrong = (5 * (0.1 - 0.8 * ratio) ** 2 + (0.1 + 4 * ratio) ** 2) / 6
        assert measured[f"extra_cost_{time}"] == pytest.approx(wrong / 0.01 - 1, rel=1e-3)
    deaf = listening(lambda noisy, steps, context: noisy, latents, contexts, times, 0)
    assert deaf == {"text_matters": 0.0, "extra_cost_100": 0.0, "extra_cost_700": 0.0}


def test_listening_does_not_depend_on_the_chunks(monkeypatch):
    latents, contexts = torch.randn(5, 4, 2, 2), torch.randn(5, 3, 1)
    denoise = lambda noisy, steps, context: noisy * context.mean(dim=1)[..., None, None]  # noqa: E731
    whole = listening(denoise, latents, contexts, (300,), 0)
    monkeypatch.setattr("vpd.measures.listening.CHUNK", 2)
    assert listening(denoise, latents, contexts, (300,), 0) == pytest.approx(whole)


# -------------------------------------------------------------------------------------------------------------- results
def test_measures_are_written_with_a_line_for_each(tmp_path):
    measures = {"sd-a": {"thing": 0.5, "text_matters": 0.7}, REAL: {"thing": 0.9}, CHANCE: {"thing": 0.1}}
    write_measures(measures, tmp_path / "measures.csv")
    rows = list(csv.DictReader((tmp_path / "measures.csv").open()))
    assert [row["images"] for row in rows] == ["sd-a", REAL, CHANCE]
    assert rows[0] == {"images": "sd-a", "thing": "0.5", "text_matters": "0.7"}
    assert rows[1]["text_matters"] == ""
