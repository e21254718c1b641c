"""What a finished pre-training writes: pipeline folders, loss history, pictures and, last, the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions
from vpd.pretraining.diffusion.denoiser import build_unet
from vpd.pretraining.diffusion.sampling import draw, save_pipeline
from vpd.pretraining.loop import seed_of
from vpd.pretraining.outputs import averaged, write_history
from vpd.pretraining.pictures import plot_grid, plot_losses
from vpd.utils.digests import sha256
from vpd.utils.files import write_json

PICTURES = ("loss.png", "samples.png")


@dataclass(frozen=True)
class Trained:
    """The networks that all milestones share, on the CPU, their measures, and the rest that training left behind.

    losses: of every step, by phase; unets: file of averaged weights, by milestone.
    """

    vae: AutoencoderKL
    text: CLIPTextModel
    tokenizer: CLIPTokenizer
    measures: dict[str, float]
    losses: dict[str, list[float]]
    unets: dict[str, Path]


def write_outputs(
    spec: PretrainingSpec, captions: Captions, trained: Trained, out: Path, identity: dict[str, str]
) -> None:
    """Write everything that ``trained`` leads to; the manifest starts with ``identity``."""
    (out / "manifest.json").unlink(missing_ok=True)
    parameters = {"vae": trained.vae.num_parameters(), "text_encoder": trained.text.num_parameters()}
    for name, path in trained.unets.items():
        unet = _load_unet(spec, trained, path)
        parameters["unet"] = unet.num_parameters()
        save_pipeline(out / name, trained.vae, trained.text, trained.tokenizer, unet)
    rows = averaged(trained.losses)
    plot_losses(rows, spec.milestones, out / "loss.png")
    plot_grid(_pictures(spec, captions, trained, out), list(spec.milestones), out / "samples.png")
    details = {
        "steps": {phase: len(losses) for phase, losses in trained.losses.items()},
        "parameters": parameters,
        "vocabulary": len(trained.tokenizer),
        "scaling_factor": trained.vae.config.scaling_factor,
        "measures": trained.measures,
    }
    write_history(rows, out / "history.csv")
    files = {"files": _digests(spec, out)}
    write_json(out / "manifest.json", identity | {"milestones": spec.milestones} | details | files)


def _load_unet(spec: PretrainingSpec, trained: Trained, path: Path) -> UNet2DConditionModel:
    factor = 2 ** (len(spec.autoencoder.channels) - 1)
    with torch.random.fork_rng(devices=[]):
        unet = build_unet(spec.denoiser, spec.text.width, trained.vae.config.sample_size // factor)
    unet.load_state_dict(load_file(path))
    return unet.eval()


def _pictures(
    spec: PretrainingSpec, captions: Captions, trained: Trained, out: Path
) -> dict[str, list[np.ndarray] | np.ndarray]:
    """A row per sample prompt with a picture per milestone, then a row of images and one of their reconstructions."""
    seed = seed_of(spec.seed, "samples")
    settings = (spec.sample_prompts, captions.size, spec.sample_steps, spec.guidance, seed)
    drawn = [draw(out / name, *settings) for name in spec.milestones if spec.sample_prompts]
    rows = {prompt: [column[index] for column in drawn] for index, prompt in enumerate(spec.sample_prompts)}
    images = captions.pixels(torch.arange(len(spec.milestones)) % len(captions.images))
    with torch.no_grad():
        decoded = trained.vae.decode(trained.vae.encode(images).latent_dist.mean).sample
    return rows | {"image": _bytes(images), "reconstruction": _bytes(decoded)}


def _bytes(images: torch.Tensor) -> np.ndarray:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _digests(spec: PretrainingSpec, out: Path) -> dict[str, str]:
    files = (path for name in spec.milestones for path in sorted((out / name).rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): sha256(path) for path in files}
