"""Small diffusion models of other families: pipelines that predict what they should, made to the same bits when killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Tokenizer

from pretraining_fakes import SPEC, digests, draw_captions, watched
from vpd.config.params import Params, load_params
from vpd.config.paths import Paths
from vpd.config.schema import CheckpointSpec, DiffusionSpec
from vpd.models.extractor import FeatureExtractor
from vpd.pretrained.checkpoints import assemble
from vpd.pretrained.shipped import ship
from vpd.pretraining.captions import load_captions
from vpd.pretraining.diffusion.denoiser import target_of
from vpd.pretraining.diffusion.pretrain import pretrain
from vpd.pretraining.families.language import END, PAD, encode_t5, leave_out, train_t5_tokenizer
from vpd.pretraining.families.networks import velocity_scheduler
from vpd.pretraining.families.pretrain import pretrain_diffusion
from vpd.pretraining.loop import generator_of
from vpd.stages.keys import job_key
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json

ROOT = Path(__file__).parent.parent
TRAINING = {"batch_size": 4, "lr": 2e-3, "warmup_steps": 2, "ema_decay": 0.9, "noises": 2, "caption_dropout": 0.1}
LANGUAGE = {
    "vocabulary": 110,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "length": 12,
    "steps": 4,
    "batch_size": 8,
    "lr": 1e-3,
}
DESIGNS = {
    "sd-2": {"unet": {"channels": [8, 16, 16], "layers_per_block": 1, "head_width": 4, "norm_groups": 4}},
    "pixart": {"transformer": {"width": 16, "layers": 2, "heads": 2, "patch_size": 2, "language": LANGUAGE}},
}
SPECS = {name: DiffusionSpec.model_validate(TRAINING | design) for name, design in DESIGNS.items()}
PIPELINES = {"sd-2": "StableDiffusionPipeline", "pixart": "PixArtAlphaPipeline"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return draw_captions(tmp_path_factory.mktemp("captions") / "data")


@pytest.fixture(scope="module")
def stable_diffusion(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    pretrain(SPEC, data, folder / "out", folder / "state")
    return folder / "out"


@pytest.fixture(scope="module", params=DESIGNS)
def design(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(design, data, stable_diffusion, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(design)
    train(design, data, stable_diffusion, folder)
    assert not (folder / "state").exists()
    return folder / "out"


def train(design, data, stable_diffusion, folder, common=SPEC, **options) -> None:
    places = (data, stable_diffusion, folder / "out", folder / "state")
    pretrain_diffusion(design, SPECS[design], common, *places, **options)


def test_a_run_that_is_killed_ends_with_the_same_bytes(design, data, stable_diffusion, trained, tmp_path):
    for phase, step in ((f"diffusion.{design}.transformer.language", 3), (f"diffusion.{design}", 3)):
        if design == "pixart" or not phase.endswith("language"):
            child = os.fork()  # a copy of this process, which need not import everything again
            if child == 0:
                with watched(phase, step, kill=True):
                    train(design, data, stable_diffusion, tmp_path, save_every=2)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with watched() as after:
        train(design, data, stable_diffusion, tmp_path, save_every=2)
    assert after == [(f"diffusion.{design}", step) for step in (3, 4, 5, 6)]
    assert digests(tmp_path / "out") == digests(trained)
    with watched() as again:
        train(design, data, stable_diffusion, tmp_path)
    assert again == []


def test_it_is_shown_what_the_small_stable_diffusion_was_shown(data, stable_diffusion, tmp_path, monkeypatch):
    """The same noises and times in each step, and but for the autoencoder's half precision the same latents (U9)."""
    shown, add_noise = [], diffusers.DDIMScheduler.add_noise

    def recorded(scheduler, *given):
        shown.append(given)
        return add_noise(scheduler, *given)

    monkeypatch.setattr(diffusers.DDIMScheduler, "add_noise", recorded)
    train("pixart", data, stable_diffusion, tmp_path)
    own = shown.copy()
    pretrain(SPEC, data, tmp_path / "other", tmp_path / "state")
    assert len(own) == 6
    for (latents, *noises_and_times), (others, *wanted) in zip(own, shown[6:], strict=True):
        torch.testing.assert_close(latents, others, rtol=0.01, atol=0.01)
        assert all(torch.equal(*pair) for pair in zip(noises_and_times, wanted, strict=True))


def test_the_loss_falls(design, data, stable_diffusion, tmp_path):
    train(design, data, stable_diffusion, tmp_path, SPEC.model_copy(update={"images_seen": 120}))
    losses = np.loadtxt(tmp_path / "out/history.csv", delimiter=",", skiprows=1, usecols=2)[-3:]
    assert losses[-1] < 0.85 * losses[0]


def test_its_own_pipeline_loads_it_and_the_rest_of_vpd_takes_it(design, stable_diffusion, trained, tmp_path):
    pipeline = getattr(diffusers, PIPELINES[design]).from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    wanted = {"sd-2": "v_prediction", "pixart": "epsilon"}[design]
    assert pipeline.scheduler.config.prediction_type == wanted
    options = {} if design == "sd-2" else {"use_resolution_binning": False, "clean_caption": False}
    image = pipeline("a red ball", num_inference_steps=2, height=32, width=32, output_type="np", **options).images[0]
    assert image.shape == (32, 32, 3)
    spec = CheckpointSpec(source="folder", family=SPECS[design].family, path=str(trained))
    assemble(design, spec, tmp_path, tmp_path / "out")
    assert read_json(tmp_path / "out/manifest.json")["parameters"] == read_json(trained / "manifest.json")["parameters"]
    found = FeatureExtractor(tmp_path / "out")(torch.rand(1, 3, 32, 32), "a red ball")
    assert found.attention_of("ball").shape == (1, 32, 32)


def test_parts_that_were_there_keep_their_values_in_half_precision(design, stable_diffusion, trained):
    given, kept = stable_diffusion / "sd-b", ["vae"] if design == "pixart" else ["vae", "text_encoder", "tokenizer"]
    for path in (path for part in kept for path in sorted((given / part).iterdir())):
        own = trained / path.relative_to(given)
        if path.suffix == ".safetensors":
            found, wanted = load_file(own), {name: x.half().float() for name, x in load_file(path).items()}
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        else:
            assert own.read_bytes() == path.read_bytes()


def test_weights_in_git_give_the_model_that_the_pre_training_gives(design, data, stable_diffusion, trained, tmp_path):
    """So a model can be added without pre-training the small Stable Diffusion again."""
    ship(stable_diffusion / "sd-b", tmp_path / "shipped", {}, {})
    train(design, data, tmp_path / "shipped", tmp_path)
    made, own = digests(tmp_path / "out"), digests(trained)
    assert made.keys() == own.keys()
    assert {name for name in own if made[name] != own[name]} <= {"manifest.json", "fingerprint.json"}


def test_a_damaged_autoencoder_is_refused(design, data, stable_diffusion, tmp_path):
    broken = tmp_path / "pretraining"
    write_json(broken / "manifest.json", read_json(stable_diffusion / "manifest.json"))
    with pytest.raises(
        UserError, match=r"sd-b differs from its manifest in .*vae/config\.json, .*; make or restore it again"
    ):
        train(design, data, broken, tmp_path)


def test_velocity_is_that_of_the_paper_by_hand():
    """Salimans and Ho 2022: v = alpha noise - sigma x; noise and x come back from it and from the noisy x."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[600] ** 0.5
    sigma, x, noise = (1 - alpha**2) ** 0.5, 0.7, -1.3
    given = (torch.full((1, 4, 2, 2), value) for value in (x, noise))
    found = target_of(velocity_scheduler(), *given, torch.tensor([600]))
    torch.testing.assert_close(found, torch.full_like(found, alpha * noise - sigma * x), rtol=1e-4, atol=0)
    noisy = alpha * x + sigma * noise
    assert alpha * noisy - sigma * found[0, 0, 0, 0].item() == pytest.approx(x, rel=1e-4)


def test_what_is_left_out_and_what_is_said_make_up_the_text():
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, END, PAD], [5, END, *[PAD] * 10], [4] * 11 + [END]])
    tokens, mark = tokens.repeat(50, 1), 3
    seen, said = leave_out(tokens, mark, generator_of("test"))
    starts = set()
    for whole, shown, told in zip(tokens.tolist(), seen.tolist(), said.tolist(), strict=True):
        place, end = shown.index(mark), told.index(END)
        starts.add(place)
        text = [*shown[:place], *told[1:end], *shown[place + 1 :]]
        assert [token for token in text if token != PAD] == [token for token in whole if token != PAD]
        assert told[0] == mark
        assert end - 1 == max(1, round(0.15 * sum(token > END for token in whole)))
        assert set(told[end + 1 :]) <= {-100}
    assert len(starts) > 5


def test_words_of_captions_are_tokens_and_others_are_spelt(data, tmp_path):
    made = train_t5_tokenizer(load_captions(data).texts, 110, 12, "key")
    assert made.tokenize("a Red ball,".lower()) == ["▁a", "▁red", "▁ball", ","]
    assert made.tokenize("cab") == ["▁", "c", "a", "b"]
    made.save_pretrained(tmp_path)
    loaded = T5Tokenizer.from_pretrained(tmp_path)
    texts = ["a photo of a red ball", "", "an unseen zebra 🙂", "a " * 20]
    assert torch.equal(encode_t5(made, texts), encode_t5(loaded, texts))
    with pytest.raises(UserError, match=r"key is 50, but T5's letters alone need 99; raise it"):
        train_t5_tokenizer(["a"], 50, 12, "key")


# ----------------------------------------------------------------------------------------------------------------- keys
NAMES = ("sd-2-1", "pixart-xl")
EDITS = {
    ("diffusion", "sd-2-1", "unet", "norm_groups", 4): {"sd-2-1"},
    ("diffusion", "pixart-xl", "transformer", "layers", 7): {"pixart-xl"},
    ("pretraining", "denoiser", "heads", 2): {"pretrain"},
    ("pretraining", "threads", 2): {"pretrain", *NAMES},
}


@pytest.fixture
def paths(tmp_path) -> Paths:
    """A scale whose captions are drawn, and whose small Stable Diffusion is pre-trained."""
    paths = Paths("scratch", tmp_path)
    write_json(paths.dataset("captions") / "manifest.json", {"schema": 1, "files": {}})
    files = {f"sd-1-5/{part}/config.json": part for part in ("vae", "text_encoder", "tokenizer", "unet")}
    made = {"schema": 1, "milestones": {"sd-1-1": 1, "sd-1-5": 2}, "files": files}
    write_json(paths.pretraining / "manifest.json", made)
    return paths


def keys(params: Params, paths: Paths) -> dict[str, str]:
    named = {name: job_key("checkpoint", name, params, paths) for name in NAMES}
    return {"pretrain": job_key("pretrain", "", params, paths)} | named


def edited(params: Params, *path) -> Params:
    """The settings with the last of ``path`` in the place that the others name."""
    block = params.block.model_dump(by_alias=True)
    inner = block
    for key in path[:-2]:
        inner = inner[key]
    assert inner[path[-2]] != path[-1]
    inner[path[-2]] = path[-1]
    scales = params.document.scales | {params.scale: type(params.block).model_validate(block)}
    return Params(params.document.model_copy(update={"scales": scales}), params.source)


@pytest.mark.parametrize("path", EDITS)
def test_an_edit_of_one_model_leaves_the_others_as_they_are(paths, path):
    params = load_params(ROOT / "params.yaml", "scratch")
    before, after = keys(params, paths), keys(edited(params, *path), paths)
    assert all(before.values())
    assert {name for name in before if before[name] != after[name]} == EDITS[path]


def test_another_unet_of_stable_diffusion_changes_no_key_and_another_text_encoder_that_of_its_reader(paths):
    params, path = load_params(ROOT / "params.yaml", "scratch"), paths.pretraining / "manifest.json"
    made, before = read_json(path), keys(params, paths)
    for part, changed in (("unet", set()), ("tokenizer", {"sd-2-1"}), ("vae", set(NAMES))):
        write_json(path, made | {"files": made["files"] | {f"sd-1-5/{part}/config.json": "another"}})
        after = keys(params, paths)
        assert {name for name in before if before[name] != after[name]} == changed


def test_parts_come_from_the_scale_s_own_pre_training_or_else_from_git(tmp_path):
    for scale, own in (("scratch", True), ("scratch", False), ("mini", True)):
        paths = Paths(scale, tmp_path / str(own))
        if own:
            write_json(paths.pretraining / "manifest.json", {})
        source = paths.pretraining if scale == "scratch" and own else Path("weights/scratch/sd-1-5")
        assert load_params(ROOT / "params.yaml", scale).small_source(paths) == source


def test_a_recipe_has_what_decides_a_model_and_nothing_of_the_others():
    recipes = {name: load_params(ROOT / "params.yaml", "scratch").recipe(name) for name in NAMES}
    assert set(recipes["sd-2-1"]) == set(recipes["pixart-xl"]) == {"diffusion", "pretraining", "datasets.captions"}
    common = {"dataset", "seed", "threads", "images_seen", "autoencoder"}
    assert set(recipes["pixart-xl"]["pretraining"]) == common
    assert set(recipes["sd-2-1"]["pretraining"]) == common | {"text"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("checkpoints", "sd-2-1", "family", "pixart-alpha"), r"diffusion\.sd-2-1 describes a stable-diffusion-2, but"),
        (
            ("diffusion", "pixart-xl", "batch_size", 500000),
            r"batch_size is 500000, but pretraining\.images_seen is 204800",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(path, message):
    params = load_params(ROOT / "params.yaml", "scratch")
    with pytest.raises(UserError, match=message):
        edited(params, *path).check_all()
