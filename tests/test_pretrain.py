"""Pre-training: the small Stable Diffusion is a loadable pipeline, made to the same bits however often it is killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from pretraining_fakes import SPEC, draw_captions
from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import load_captions
from vpd.pretraining.clip import encode, train_tokenizer
from vpd.pretraining.diffusion.autoencoder import build_autoencoder, encode_images, scaling_factor
from vpd.pretraining.diffusion.denoiser import Encoded, build_scheduler
from vpd.pretraining.diffusion.ema import EMA
from vpd.pretraining.diffusion.pooling import initialise_as_pooling
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.pretraining.diffusion.text import contrastive_loss
from vpd.pretraining.loop import constant_after, generator_of, rise_and_fall
from vpd.pretraining.workdir import Workplace
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

TEXTS = ["a photo of a red ball", "a kitchen with a blue lamp", "a small bedroom", "the green box"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_captions(tmp_path_factory.mktemp("captions") / "data")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    pretrain(SPEC, data, folder / "out", folder / "state")
    assert not (folder / "state").exists()
    return folder / "out"


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------------ tokenizer
def test_tokenizer_is_the_same_after_saving_and_loading(tmp_path):
    made = train_tokenizer(TEXTS, 700, 12)
    made.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "an unseen zebra", "", "déjà 你好 🙂!?"]
    assert torch.equal(encode(made, texts), encode(loaded, texts))
    assert loaded.model_max_length == 12


def test_tokenizer_knows_words_of_captions_and_splits_others():
    tokenizer = train_tokenizer(TEXTS, 700, 12)
    assert tokenizer.tokenize("A Photo of a lamp") == ["a</w>", "photo</w>", "of</w>", "a</w>", "lamp</w>"]
    pieces = tokenizer.tokenize("zebra")
    assert len(pieces) > 1
    assert "".join(pieces) == "zebra</w>"
    assert tokenizer.decode(tokenizer("zebra 🙂", add_special_tokens=False).input_ids) == "zebra 🙂"


def test_tokenizer_pads_with_end_of_text_and_cuts_long_texts():
    tokenizer = train_tokenizer(TEXTS, 700, 6)
    short, long = encode(tokenizer, ["ball", "a a a a a a a a a"]).tolist()
    end = tokenizer.eos_token_id
    assert short[0] == tokenizer.bos_token_id
    assert short[2:] == [end] * 4
    assert (len(long), long[-1]) == (6, end)
    assert tokenizer.convert_ids_to_tokens([len(tokenizer) - 2, len(tokenizer) - 1]) == [
        "<|startoftext|>",
        "<|endoftext|>",
    ]


def test_tokenizer_keeps_to_the_vocabulary_and_needs_room_for_bytes():
    assert len(train_tokenizer(TEXTS, 520, 12)) == 520
    with pytest.raises(UserError, match=r"text\.vocabulary is 500.*514"):
        train_tokenizer(TEXTS, 500, 12)


# --------------------------------------------------------------------------------------------------------------- pieces
def test_ema_matches_hand_computation():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, decay=0.5)
    expected = 1.0
    for step, value in [(0, 3.0), (1, -1.0), (100, 5.0)]:
        model.weight.data.fill_(value)
        ema.update(model, step)
        decay = {0: 0.1, 1: 2 / 11, 100: 0.5}[step]
        expected = decay * expected + (1 - decay) * value
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_contrastive_loss_shares_the_answer_among_equal_captions():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.5], [1.0, 1.0, 1.0]])
    own = nn.functional.cross_entropy
    labels = torch.arange(3)
    distinct = (own(logits, labels) + own(logits.T, labels)) / 2
    assert contrastive_loss(logits, torch.eye(3).bool()).item() == pytest.approx(distinct.item())
    everywhere = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    assert contrastive_loss(logits, torch.ones(3, 3).bool()).item() == pytest.approx(everywhere.item())


def test_scheduler_has_scaled_linear_betas():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(build_scheduler().alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.1, 0.08, 0.12)])
def test_captions_are_dropped_at_the_given_rate(dropout, low, high):
    zeros, pairs = torch.zeros(4, 1, 1, 1), torch.arange(4)
    encoded = Encoded(zeros, zeros, torch.ones(2, 3, 1), pairs, pairs % 2, torch.zeros(3, 1))
    _, contexts = encoded.draw(5000, dropout, generator_of("test"))
    assert low <= (contexts == 0).all(dim=2).all(dim=1).float().mean().item() <= high


def test_scaling_factor_is_one_over_the_standard_deviation():
    assert scaling_factor(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])) == pytest.approx(1 / math.sqrt(2))


@torch.no_grad()
def test_fresh_autoencoder_encodes_the_pooled_colours():
    torch.manual_seed(0)
    model = build_autoencoder(SPEC.autoencoder.model_copy(update={"channels": (8, 16, 32)}), (32, 32)).eval()
    initialise_as_pooling(model)
    images = nn.functional.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, size=(32, 32), mode="bilinear")
    pooled = nn.functional.avg_pool2d(images, 4)
    latents = model.encode(images).latent_dist.mean
    decoded = nn.functional.avg_pool2d(model.decode(latents).sample, 4)
    for colour in range(3):
        for made in (latents[:, colour], decoded[:, colour]):
            correlation = [
                torch.corrcoef(torch.stack([made[i].ravel(), pooled[i, colour].ravel()]))[0, 1] for i in range(8)
            ]
            assert min(correlation) > 0.95


def test_pooling_start_needs_six_channels():
    spec = SPEC.autoencoder.model_copy(update={"channels": (4, 16)})
    with pytest.raises(UserError, match=r"autoencoder\.channels has a level of 4; give each at least 6"):
        initialise_as_pooling(build_autoencoder(spec, (32, 32)))


def test_learning_rate_factors():
    assert [constant_after(4)(step) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    factor = rise_and_fall(20)
    assert [factor(step) for step in (0, 1, 19)] == pytest.approx([0.5, 1.0, 1 / 19])
    assert all(factor(step) > factor(step + 1) for step in range(2, 19))


# -------------------------------------------------------------------------------------------------------------- outputs
def test_pipeline_loads_and_draws(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "sd-b")
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(
            "a red ball",
            height=32,
            width=32,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        for seed in (0, 0, 1)
    ]
    assert pictures[0].shape == (32, 32, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0] - pictures[2]).max() > 0
    assert pipeline.unet.config.down_block_types == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]


def test_milestones_share_all_but_the_unet(trained):
    files = read_json(trained / "manifest.json")["files"]
    names = [name.removeprefix("sd-a/") for name in files if name.startswith("sd-a/")]
    differing = [name for name in names if files[f"sd-a/{name}"] != files[f"sd-b/{name}"]]
    assert differing == ["unet/diffusion_pytorch_model.safetensors"]


def test_saved_scale_makes_latents_unit_variance(data, trained):
    vae = StableDiffusionPipeline.from_pretrained(trained / "sd-a").vae
    place = Workplace(data, 0, 1, torch.device("cpu"))
    means, stds = encode_images(vae, load_captions(data), place)
    drawn = means + stds * torch.randn((200, *means.shape), generator=generator_of("scale"))
    assert (drawn * vae.config.scaling_factor).std().item() == pytest.approx(1.0, abs=0.01)


def test_manifest_history_and_pictures_tell_what_was_done(trained):
    manifest = read_json(trained / "manifest.json")
    assert manifest["milestones"] == {"sd-a": 3, "sd-b": 6}
    assert manifest["steps"] == {"autoencoder": 5, "text": 5, "denoiser": 6}
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "sd-a")
    assert manifest["parameters"]["unet"] == sum(weight.numel() for weight in pipeline.unet.parameters())
    rows = (trained / "history.csv").read_text().splitlines()
    assert [row.rsplit(",", 1)[0] for row in rows] == ["phase,step", "autoencoder,5", "text,5", "denoiser,6"]
    assert all(Image.open(trained / name).size[0] > 100 for name in ("loss.png", "samples.png"))


# ---------------------------------------------------------------------------------------------------------- interrupted
class Stopped(Exception):
    pass


def stop_at(phase: str, step: int, seen: list[tuple[str, int]]):
    def observe(current_phase: str, current_step: int, loss: float) -> None:
        seen.append((current_phase, current_step))
        if (current_phase, current_step) == (phase, step):
            raise Stopped

    return observe


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.config.schema import PretrainingSpec

torch.use_deterministic_algorithms(True)
spec = PretrainingSpec.model_validate_json(sys.argv[1])
kill = lambda phase, step, loss: (phase, step) == ("text", 3) and os.kill(os.getpid(), signal.SIGKILL)
pretrain(spec, *map(Path, sys.argv[2:]), save_every=2, observers=[kill])
"""


def test_killed_runs_end_with_the_bits_of_an_uninterrupted_one(data, trained, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    seen: list[tuple[str, int]] = []
    with pytest.raises(Stopped):
        pretrain(SPEC, data, out, state, save_every=2, observers=[stop_at("autoencoder", 3, seen)])
    arguments = [SPEC.model_dump_json(), data, out, state]
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, *map(str, arguments)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with pytest.raises(Stopped):
        pretrain(SPEC, data, out, state, save_every=2, observers=[stop_at("denoiser", 5, seen)])
    pretrain(SPEC, data, out, state, save_every=2, observers=[stop_at("never", 0, seen)])
    resumed = [("text", 3), ("denoiser", 5)]
    assert [seen.count(at) for at in resumed] == [1, 2]
    assert ("text", 2) not in seen
    assert digests(out) == digests(trained)
    assert not state.exists()


def test_finished_run_is_left_alone_and_another_spec_is_not(data, trained, tmp_path):
    calls: list[tuple[str, int]] = []
    pretrain(SPEC, data, trained, tmp_path / "state", observers=[stop_at("autoencoder", 1, calls)])
    assert calls == []
    other = SPEC.model_copy(update={"seed": 1})
    with pytest.raises(Stopped):
        pretrain(other, data, trained, tmp_path / "state", observers=[stop_at("autoencoder", 1, calls)])


def test_state_of_another_spec_is_not_resumed(data, tmp_path):
    seen: list[tuple[str, int]] = []
    for seed in (0, 1):
        spec = SPEC.model_copy(update={"seed": seed})
        with pytest.raises(Stopped):
            pretrain(
                spec, data, tmp_path / "out", tmp_path / "state", save_every=1, observers=[stop_at("text", 1, seen)]
            )
    assert seen.count(("autoencoder", 1)) == 2
    assert len([path for path in (tmp_path / "state").iterdir() if path.is_dir()]) == 1


# --------------------------------------------------------------------------------------------------------------- errors
def test_non_finite_loss_stops_before_the_optimizer(data, tmp_path):
    wild = SPEC.autoencoder.model_copy(update={"lr": 1e30})
    spec = SPEC.model_copy(update={"autoencoder": wild})
    with pytest.raises(
        UserError, match=r"of pretraining\.autoencoder is \w+ at step 2; lower pretraining\.autoencoder\.lr"
    ):
        pretrain(spec, data, tmp_path / "out", tmp_path / "state", save_every=1)
    (kept,) = (tmp_path / "state").rglob("autoencoder.pt")
    assert len(torch.load(kept, weights_only=True)["losses"]) == 1
    assert not (tmp_path / "out").exists()


def test_damaged_or_missing_images_are_named(tmp_path):
    folder = draw_captions(tmp_path / "data", count=2)
    (folder / "images/000001.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"000001\.jpg cannot be read"):
        load_captions(folder)
    (folder / "images/000001.jpg").unlink()
    with pytest.raises(UserError, match=r"000001\.jpg cannot be read"):
        load_captions(folder)


def test_without_milestones_nothing_is_trained(tmp_path):
    spec = PretrainingSpec(dataset="captions", seed=0, threads=1, milestones={})
    pretrain(spec, tmp_path / "absent", tmp_path / "out", tmp_path / "state")
    assert read_json(tmp_path / "out/manifest.json")["milestones"] == {}
    assert (tmp_path / "out/history.csv").read_text() == "phase,step,loss\n"


def test_images_and_captions_are_kept_once_however_often_they_are_paired(tmp_path):
    folder = draw_captions(tmp_path / "data", count=2)
    pairs = [("images/000000.jpg", "a"), ("images/000001.jpg", "b"), ("images/000000.jpg", "b")]
    (folder / "captions.json").write_text(json.dumps([{"file": file, "caption": text} for file, text in pairs]))
    captions = load_captions(folder)
    assert (len(captions.images), captions.texts) == (2, ["a", "b"])
    assert captions.image_of.tolist() == [0, 1, 0]
    assert captions.text_of.tolist() == [0, 1, 1]
    white = captions.pixels(torch.tensor([1]))
    assert (white.min().item(), white.max().item()) == pytest.approx((-1, 1), abs=0.1)
