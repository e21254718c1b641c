"""Pre-training of a small Stable Diffusion, from captioned images to one pipeline folder per milestone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions, load_captions
from vpd.pretraining.clip import encode, encode_texts, matching_accuracy, text_tower, train_clip, train_tokenizer
from vpd.pretraining.diffusion.autoencoder import encode_images, reconstruction_psnr, scaling_factor, train_autoencoder
from vpd.pretraining.diffusion.denoiser import Encoded, build_scheduler, train_denoiser
from vpd.pretraining.loop import complete, seed_of, turn_off_library_bars
from vpd.pretraining.workdir import Workdir, open_workdir, pretraining_fingerprint
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.fingerprint import is_finished


def pretrain(spec: PretrainingSpec, data: Path, out: Path, state: Path, *, save_every: int = 100) -> None:
    """Pre-train a small Stable Diffusion unless ``out`` is finished already; an interrupted run resumes to the bit.

    Args:
        spec: networks, training and milestones; without milestones (paper scale) nothing is trained or read.
        data: a captions dataset.
        out: gets a pipeline folder per milestone, samples.png, history.csv and the manifest, all at once at the end.
        state: holds the resumable state, saved every ``save_every`` steps; removed at the end.

    Raises:
        UserError: ``data`` is missing or damaged, a loss is not finite, or another process works in ``state``.
    """
    made_from = pretraining_fingerprint(spec, data)
    if is_finished(out, made_from):
        return
    if not spec.milestones:
        with atomic_folder(out) as folder:
            complete(folder, made_from, {}, {"milestones": {}})
        return
    with open_workdir(state, made_from, spec, save_every) as workdir:
        captions = load_captions(data)
        vae, losses, facts = _train(spec, captions, workdir)
        with atomic_folder(out) as folder:
            for name in spec.milestones:
                shutil.copytree(workdir.folder / name, folder / name)
            _plot_images(_sample_rows(spec, captions, vae, folder), list(spec.milestones), folder / "samples.png")
            complete(folder, made_from, losses, facts)


def _train(
    spec: PretrainingSpec, captions: Captions, workdir: Workdir
) -> tuple[AutoencoderKL, dict[str, list[float]], dict[str, object]]:
    """Save a pipeline folder per milestone in ``workdir``; return the autoencoder, the losses, and the manifest's facts."""
    # The schema demands all three where there are milestones.
    assert spec.autoencoder is not None
    assert spec.text is not None
    assert spec.denoiser is not None
    tokenizer = train_tokenizer(captions.texts, spec.text.vocabulary, spec.text.length)
    vae, vae_losses = train_autoencoder(spec.autoencoder, captions, workdir)
    clip, text_losses = train_clip(spec.text, tokenizer, captions, workdir)
    measures = {
        "reconstruction_psnr": round(reconstruction_psnr(vae, captions, workdir.device), 3),
        "matching_accuracy": round(matching_accuracy(clip, tokenizer, captions, workdir.device), 4),
    }
    text = text_tower(clip)
    latents = workdir.folder / "latents.pt"
    if not latents.exists():
        with atomic_path(latents) as temporary:
            torch.save(encode_images(vae, captions, workdir.device), temporary)
    means, stds = torch.load(latents, weights_only=True)
    factor = scaling_factor(means, stds)
    vae.register_to_config(scaling_factor=factor)
    contexts = encode_texts(text, encode(tokenizer, ["", *captions.texts]))
    pairs = captions.image_of, captions.text_of
    encoded = Encoded(means * factor, stds * factor, contexts[1:], *pairs, contexts[0])
    vae.cpu()

    def save(name: str, unet: UNet2DConditionModel) -> None:
        _save_pipeline(workdir.folder / name, vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet)

    unet, unet_losses = train_denoiser(spec.denoiser, spec.milestones, encoded, workdir, save)
    losses = {"autoencoder": vae_losses, "text": text_losses, "denoiser": unet_losses}
    networks = {"vae": vae, "text_encoder": text, "unet": unet}
    facts = {
        "milestones": spec.milestones,
        "steps": {phase: len(values) for phase, values in losses.items()},
        "parameters": {name: network.num_parameters() for name, network in networks.items()},
        "vocabulary": len(tokenizer),
        "scaling_factor": vae.config.scaling_factor,
        "measures": measures,
    }
    return vae, losses, facts


def _save_pipeline(folder: Path, **parts: nn.Module | CLIPTokenizer) -> None:
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**parts, scheduler=build_scheduler(), **unused)
    turn_off_library_bars()
    with atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)


def _sample_rows(
    spec: PretrainingSpec, captions: Captions, vae: AutoencoderKL, folder: Path
) -> dict[str, list[np.ndarray]]:
    """Images (H,W,3) uint8, one per milestone in each row: a row per sample prompt, then real images and reconstructions."""
    samples = [_sample(folder / name, spec, captions.size) for name in spec.milestones if spec.sample_prompts]
    rows = {prompt: [column[index] for column in samples] for index, prompt in enumerate(spec.sample_prompts)}
    images = captions.pixels(torch.arange(len(spec.milestones)) % len(captions.images))
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
    return rows | {"image": _bytes(images), "reconstruction": _bytes(decoded)}


def _sample(folder: Path, spec: PretrainingSpec, size: tuple[int, int]) -> list[np.ndarray]:
    """One image per prompt."""
    turn_off_library_bars()
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    # The same seeds for every folder: milestones start from the same noise, so that their columns can be compared.
    seed = seed_of(spec.seed, "samples")
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(spec.sample_prompts))]
    strength: dict[str, Any] = {"num_inference_steps": spec.sample_steps, "guidance_scale": spec.guidance}
    sides, prompts = {"height": size[0], "width": size[1]}, list(spec.sample_prompts)
    images = pipeline(prompts, **sides, **strength, generator=generators, output_type="np").images
    return [(image * 255).round().astype(np.uint8) for image in images]


def _bytes(images: torch.Tensor) -> list[np.ndarray]:
    return list(((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def _plot_images(rows: Mapping[str, list[np.ndarray]], columns: list[str], path: Path) -> None:
    """Write a figure of images (H,W,3) uint8 in labelled rows, each with one image per column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.5 * len(columns), 1.6 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (label, images) in zip(panels, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", wrap=True, fontsize=7)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})  # matplotlib's version would change the bytes
