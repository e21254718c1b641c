"""Pre-training: the small Stable Diffusion is a loadable pipeline, made to the same bits however often it is killed."""

from __future__ import annotations

import ast
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from pretraining_fakes import SPEC, Stopped, digests, draw_captions, kill_at, watched
from vpd.config.schema import PretrainingSpec, TextSpec
from vpd.measures.results import CODE as MEASURES_CODE
from vpd.pretraining.captions import load_captions
from vpd.pretraining.clip import (
    build_clip,
    contrastive_loss,
    encode,
    encode_texts,
    text_tower,
    train_tokenizer,
    word_similarity,
    words_of,
)
from vpd.pretraining.diffusion.autoencoder import (
    build_autoencoder,
    encode_images,
    initialise_as_pooling,
    scaling_factor,
)
from vpd.pretraining.diffusion.denoiser import Encoded, build_scheduler, noise_weights
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.pretraining.loop import constant_after, generator_of, rise_and_fall, update_average
from vpd.pretraining.workdir import BACKBONE_CODE, DIFFUSION_CODE
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.fingerprint import ROOT

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


def test_tokenizer_is_the_same_after_saving_and_loading(tmp_path):
    made = train_tokenizer(TEXTS, 700, 12)
    made.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, "an unseen zebra", "", "déjà 你好 🙂!?"]
    assert torch.equal(encode(made, texts), encode(loaded, texts))
    assert loaded.model_max_length == 12
    assert len(train_tokenizer(TEXTS, 520, 12)) == 520
    with pytest.raises(UserError, match=r"text\.vocabulary is 500.*514"):
        train_tokenizer(TEXTS, 500, 12)


def test_tokenizer_pads_with_end_of_text_and_cuts_long_texts():
    tokenizer = train_tokenizer(TEXTS, 700, 6)
    assert tokenizer.tokenize("A Photo of a lamp") == ["a</w>", "photo</w>", "of</w>", "a</w>", "lamp</w>"]
    short, long = encode(tokenizer, ["ball", "a a a a a a a a a"]).tolist()
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert (short[0], short[2:], len(long), long[-1]) == (start, [end] * 4, 6, end)
    assert tokenizer.convert_ids_to_tokens([start, end]) == ["<|startoftext|>", "<|endoftext|>"]


def test_average_matches_hand_computation():
    model = nn.Linear(1, 1, bias=False)
    average, expected = {"weight": torch.ones(1, 1)}, 1.0
    for step, value, decay in [(0, 3.0, 0.1), (1, -1.0, 2 / 11), (100, 5.0, 0.5)]:
        model.weight.data.fill_(value)
        update_average(average, model, step, 0.5)
        expected = decay * expected + (1 - decay) * value
    assert average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_contrastive_loss_shares_the_answer_among_equal_captions():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.5], [1.0, 1.0, 1.0]])
    own = nn.functional.cross_entropy
    labels = torch.arange(3)
    distinct = (own(logits, labels) + own(logits.T, labels)) / 2
    assert contrastive_loss(logits, torch.eye(3).bool()).item() == pytest.approx(distinct.item())
    everywhere = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    assert contrastive_loss(logits, torch.ones(3, 3).bool()).item() == pytest.approx(everywhere.item())


def test_words_lie_between_the_first_token_and_the_end():
    tokenizer = train_tokenizer(["a red ball"] * 9, 600, 6)
    tokens = encode(tokenizer, ["a red ball", "ball", ""])
    expected = [[False, True, True, True, False, False], [False, True] + [False] * 4, [False] * 6]
    assert words_of(tokens, tokenizer).tolist() == expected


def test_words_and_patches_meet_where_they_are_alike():
    east, north, west = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
    texts = torch.stack([torch.stack([east, north, west]), torch.stack([west, west, north])])
    words = torch.tensor([[True, True, False], [True, False, False]])  # the second text is the word "west" alone
    patches = torch.stack([torch.stack([east, north]), torch.stack([west, north])])
    by_image, by_text = word_similarity(texts, words, patches)
    assert by_image.tolist() == [[1.0, -0.5], [0.5, 0.5]]  # mean over patches of the best word
    assert by_text.tolist() == [[1.0, 0.0], [0.5, 1.0]]  # mean over words of the best patch


def test_a_fresh_text_tower_tells_the_words_of_a_text_apart():
    """Most of the variance of its states is between words: a U-Net that reads them can learn which word means what."""
    colours, things = ("red", "green", "blue", "white"), ("ball", "lamp", "box", "chair")
    texts = [f"a {one} {thing} and a {other} cone" for one in colours for other in colours for thing in things]
    tokenizer = train_tokenizer(texts, 700, 12)
    spec = TextSpec(
        vocabulary=700, width=32, layers=2, heads=2, length=12, patch_size=8, steps=1, batch_size=2, lr=1e-3
    )
    tokens = encode(tokenizer, texts)
    states = encode_texts(text_tower(build_clip(spec, tokenizer, (16, 16))), tokens)[words_of(tokens, tokenizer)]
    words = tokens[words_of(tokens, tokenizer)]
    means = torch.stack([states[words == word].mean(dim=0) for word in words])
    assert means.var(dim=0).sum() > 0.8 * states.var(dim=0).sum()


def test_loss_weights_are_those_of_the_signal_to_noise_ratio():
    scheduler = build_scheduler()
    assert torch.equal(noise_weights(scheduler, 0.0), torch.ones(1000))
    ratio = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    expected = (1 + ratio) ** -2.0
    torch.testing.assert_close(noise_weights(scheduler, 2.0), expected / expected.mean())


def test_scheduler_has_scaled_linear_betas():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    np.testing.assert_allclose(build_scheduler().alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.1, 0.08, 0.12)])
def test_captions_are_dropped_at_the_given_rate(dropout, low, high):
    zeros, pairs = torch.zeros(4, 1, 1, 1), torch.arange(4)
    encoded = Encoded(zeros, zeros, torch.ones(2, 3, 1), pairs, pairs % 2, torch.zeros(3, 1))
    _, contexts = encoded.draw(5000, dropout, generator_of("test"))
    assert low <= (contexts == 0).all(dim=2).all(dim=1).float().mean().item() <= high


def test_each_image_of_a_batch_is_seen_at_as_many_times_as_asked_for(data, tmp_path, monkeypatch):
    seen, forward = [], UNet2DConditionModel.forward

    def recorded(unet, sample, timestep, encoder_hidden_states):
        seen.append((sample, timestep, encoder_hidden_states))
        return forward(unet, sample, timestep, encoder_hidden_states)

    monkeypatch.setattr(UNet2DConditionModel, "forward", recorded)
    pretrain(SPEC, data, tmp_path / "out", tmp_path / "state")
    assert SPEC.denoiser.noises == 2
    assert len(seen) == SPEC.images_seen // SPEC.denoiser.batch_size
    for sample, times, contexts in seen:
        assert len(sample) == len(times) == len(contexts) == 2 * SPEC.denoiser.batch_size
        assert torch.equal(contexts[::2], contexts[1::2])
        assert (times[::2] != times[1::2]).any()


def test_scaling_factor_is_one_over_the_standard_deviation():
    assert scaling_factor(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])) == pytest.approx(1 / math.sqrt(2))


def test_learning_rate_factors():
    assert [constant_after(4)(step) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    factor = rise_and_fall(20)
    assert [factor(step) for step in (0, 1, 19)] == pytest.approx([0.5, 1.0, 1 / 19])
    assert all(factor(step) > factor(step + 1) for step in range(2, 19))


def autoencoder(channels):
    return build_autoencoder(SPEC.autoencoder.model_copy(update={"channels": channels}), (32, 32)).eval()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@torch.no_grad()
def test_latents_are_pooled_colours():
    """Up to one offset and scale per image (the norm's), the first three latent channels are the averages of 4x4 blocks."""
    model = autoencoder((8, 16, 32))
    initialise_as_pooling(model)
    image = F.interpolate(torch.rand(1, 3, 8, 8), size=(32, 32), mode="bilinear") * 2 - 1
    latent, pooled = model.encode(image).latent_dist.mean[:, :3], F.avg_pool2d(image, 4)
    for channel in range(3):
        assert correlation(latent[:, channel], pooled[:, channel]) > 0.999
    decoded, repeated = model.decode(model.encode(image).latent_dist.mean).sample, F.interpolate(pooled, scale_factor=4)
    assert correlation(decoded, repeated) > 0.99
    with pytest.raises(UserError, match="has a level of 4; give each at least 6"):
        initialise_as_pooling(autoencoder((4, 8, 8)))


def test_pipeline_loads_and_draws(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "sd-b")
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
    assert pipeline("a red ball", **options).images[0].shape == (32, 32, 3)
    assert pipeline.unet.config.down_block_types == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]


def test_saved_scale_makes_latents_unit_variance(data, trained):
    vae = StableDiffusionPipeline.from_pretrained(trained / "sd-a").vae
    means, stds = encode_images(vae, load_captions(data), torch.device("cpu"))
    drawn = means + stds * torch.randn((200, *means.shape), generator=generator_of("scale"))
    assert (drawn * vae.config.scaling_factor).std().item() == pytest.approx(1.0, abs=0.01)


def test_manifest_and_history_tell_what_was_done(trained):
    manifest = read_json(trained / "manifest.json")
    assert manifest["milestones"] == {"sd-a": 12, "sd-b": 24}
    assert manifest["steps"] == {"autoencoder": 5, "text": 5, "denoiser": 6}
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "sd-a")
    assert manifest["parameters"]["unet"] == sum(weight.numel() for weight in pipeline.unet.parameters())
    rows = (trained / "history.csv").read_text().splitlines()
    assert [row.rsplit(",", 1)[0] for row in rows] == ["phase,step", "autoencoder,5", "text,5", "denoiser,6"]
    files = manifest["files"]
    assert {"history.csv", "sd-a/model_index.json"} <= files.keys()
    names = [name.removeprefix("sd-a/") for name in files if name.startswith("sd-a/")]
    differing = [name for name in names if files[f"sd-a/{name}"] != files[f"sd-b/{name}"]]
    assert differing == ["unet/diffusion_pytorch_model.safetensors"]


def test_killed_runs_end_with_the_bits_of_an_uninterrupted_one(data, trained, tmp_path):
    out, state = tmp_path / "out", tmp_path / "state"
    with pytest.raises(Stopped), watched("pretraining.autoencoder", 3):
        pretrain(SPEC, data, out, state, save_every=2)
    kill_at("pretraining.text", 3, pretrain, SPEC, data, out, state, save_every=2)
    with pytest.raises(Stopped), watched("pretraining.denoiser", 5) as before:
        pretrain(SPEC, data, out, state, save_every=2)
    with watched() as after:
        pretrain(SPEC, data, out, state, save_every=2)
    assert before[0] == ("pretraining.text", 3)
    assert after == [("pretraining.denoiser", 5), ("pretraining.denoiser", 6)]
    assert digests(out) == digests(trained)
    assert not state.exists()


def test_finished_run_is_left_alone_and_a_damaged_output_is_not(data, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "out")
    with watched() as steps:
        pretrain(SPEC, data, out, tmp_path / "state")
    assert steps == []
    (out / "sd-a/vae/config.json").write_text("{}")
    with pytest.raises(Stopped), watched("pretraining.autoencoder", 1):
        pretrain(SPEC, data, out, tmp_path / "state")


def test_state_of_another_spec_is_not_resumed(data, tmp_path):
    for seed in (0, 1):
        spec = SPEC.model_copy(update={"seed": seed})
        with pytest.raises(Stopped), watched("pretraining.text", 1) as steps:
            pretrain(spec, data, tmp_path / "out", tmp_path / "state", save_every=1)
        assert steps[0] == ("pretraining.autoencoder", 1)
    assert len([path for path in (tmp_path / "state").iterdir() if path.is_dir()]) == 1


KEYS = {"pretraining/diffusion": DIFFUSION_CODE, "pretraining/backbones": BACKBONE_CODE, "measures": MEASURES_CODE}


@pytest.mark.parametrize("package", KEYS)
def test_cache_keys_name_everything_that_a_package_imports(package):
    code = KEYS[package]
    own = [path for entry in code for path in [*(ROOT / entry).rglob("*.py"), *ROOT.glob(f"{entry}.py")]]
    imported = {
        node.module.replace(".", "/").removeprefix("vpd/")
        for path in own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("vpd.pretraining", "vpd.measures", "vpd.world"))
    }
    assert {module for module in imported if not module.startswith(code)} == set()
    assert any(module.startswith(package) for module in imported)


def test_non_finite_loss_stops_before_the_optimizer(data, tmp_path):
    wild = SPEC.autoencoder.model_copy(update={"lr": 1e30})
    spec = SPEC.model_copy(update={"autoencoder": wild})
    with pytest.raises(UserError, match=r"of pretraining\.autoencoder is \w+ at step 2; lower pretraining\.autoenc"):
        pretrain(spec, data, tmp_path / "out", tmp_path / "state", save_every=1)
    (saved,) = (tmp_path / "state").rglob("autoencoder.pt")
    assert len(torch.load(saved, weights_only=True)["losses"]) == 1
    assert not (tmp_path / "out").exists()


def test_without_milestones_nothing_is_trained(tmp_path):
    spec = PretrainingSpec(dataset="captions", seed=0, threads=1, milestones={})
    pretrain(spec, tmp_path / "absent", tmp_path / "out", tmp_path / "state")
    assert read_json(tmp_path / "out/manifest.json")["milestones"] == {}


def test_images_and_captions_are_kept_once_however_often_they_are_paired(tmp_path):
    folder = draw_captions(tmp_path / "data", count=2)
    pairs = [("images/000000.jpg", "a"), ("images/000001.jpg", "b"), ("images/000000.jpg", "b")]
    (folder / "captions.json").write_text(json.dumps([{"file": file, "caption": text} for file, text in pairs]))
    captions = load_captions(folder)
    assert (captions.texts, captions.image_of.tolist(), captions.text_of.tolist()) == (["a", "b"], [0, 1, 0], [0, 1, 1])
    white = captions.pixels(torch.tensor([1]))
    assert (white.min().item(), white.max().item()) == pytest.approx((-1, 1), abs=0.1)
