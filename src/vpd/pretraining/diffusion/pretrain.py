"""Pre-training of a small Stable Diffusion, from captioned images to one pipeline folder per milestone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions, load_captions
from vpd.pretraining.clip import encode, encode_texts, matching_accuracy, text_tower, train_clip, train_tokenizer
from vpd.pretraining.diffusion.autoencoder import encode_images, reconstruction_psnr, scaling_factor, train_autoencoder
from vpd.pretraining.diffusion.denoiser import Encoded, build_scheduler, train_denoiser
from vpd.pretraining.loop import complete, turn_off_library_bars
from vpd.pretraining.workdir import Workdir, open_workdir, pretraining_fingerprint
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.fingerprint import is_finished


def pretrain(spec: PretrainingSpec, data: Path, out: Path, state: Path, *, save_every: int = 100) -> None:
    """Pre-train a small Stable Diffusion unless ``out`` is finished already; an interrupted run resumes to the bit.

    Args:
        spec: networks, training and milestones; without milestones (paper scale) nothing is trained or read.
        data: a captions dataset.
        out: gets a pipeline folder per milestone, history.csv and the manifest, all at once at the end.
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
        losses, facts = _train(spec, captions, workdir)
        with atomic_folder(out) as folder:
            for name in spec.milestones:
                shutil.copytree(workdir.folder / name, folder / name)
            complete(folder, made_from, losses, facts)


def _train(
    spec: PretrainingSpec, captions: Captions, workdir: Workdir
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Save a pipeline folder per milestone in ``workdir``; return the losses and the manifest's facts."""
    # The schema demands all three where there are milestones.
    assert spec.autoencoder is not None
    assert spec.text is not None
    assert spec.denoiser is not None
    tokenizer = train_tokenizer(captions.texts, spec.text.vocabulary, spec.text.length)
    vae, vae_losses = train_autoencoder(spec.autoencoder, captions, workdir)
    clip, text_losses = train_clip(spec.text, tokenizer, captions, workdir)
    parts = {
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
        **parts,
    }
    return losses, facts


def _save_pipeline(folder: Path, **parts: nn.Module | CLIPTokenizer) -> None:
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(**parts, scheduler=build_scheduler(), **unused)
    turn_off_library_bars()
    with atomic_folder(folder, own=True) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)
