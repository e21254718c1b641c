"""Pre-training of a small Stable Diffusion, from captioned images to one pipeline folder per milestone.

Phases: autoencoder, text, latents (encoded once), denoiser. Each goes on where a killed run stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions, load_captions
from vpd.pretraining.clip import encode, train_tokenizer
from vpd.pretraining.diffusion.autoencoder import encode_images, reconstruction_psnr, scaling_factor, train_autoencoder
from vpd.pretraining.diffusion.denoiser import Encoded, encode_texts, train_denoiser
from vpd.pretraining.diffusion.outputs import PICTURES, Trained, write_outputs
from vpd.pretraining.diffusion.text import matching_accuracy, text_tower, train_clip
from vpd.pretraining.loop import cpu_threads
from vpd.pretraining.outputs import write_history
from vpd.pretraining.workdir import Observer, Workplace, is_finished, open_workplace
from vpd.utils.digests import sha256
from vpd.utils.files import atomic_path, locked, read_json, write_json
from vpd.utils.fingerprint import code_digest


def pretrain(
    spec: PretrainingSpec,
    data: Path,
    out: Path,
    state: Path,
    *,
    save_every: int = 100,
    observers: Sequence[Observer] = (),
) -> None:
    """Train on captions dataset ``data`` and write ``out``: a pipeline folder per milestone and, last, manifest.json.

    ``state`` holds the resumable state, kept every ``save_every`` steps, and is removed at the end. With no milestones
    nothing is trained and ``data`` is not read. A finished ``out`` of the same spec and data is left alone.
    """
    if not spec.milestones:
        write_history([], out / "history.csv")
        write_json(out / "manifest.json", {"spec": spec.digest(), "milestones": {}, "files": {}})
        return
    read_json(data / "manifest.json")
    identity = {"spec": spec.digest(), "dataset": sha256(data / "manifest.json"), "code": code_digest("pretraining")}
    if is_finished(out, identity, ("history.csv", *PICTURES)):
        return
    with locked(state), cpu_threads(spec.threads):
        place = open_workplace(state, identity, spec.seed, save_every, observers)
        captions = load_captions(data)
        write_outputs(spec, captions, _train(spec, captions, place), out, identity)
        shutil.rmtree(state)


def _train(spec: PretrainingSpec, captions: Captions, place: Workplace) -> Trained:
    tokenizer = train_tokenizer(captions.texts, spec.text.vocabulary, spec.text.length)
    vae, vae_losses = train_autoencoder(spec.autoencoder, captions, place)
    clip, clip_losses = train_clip(spec.text, tokenizer, captions, place)
    measures = {
        "reconstruction_psnr": round(reconstruction_psnr(vae, captions, place), 3),
        "matching_accuracy": round(matching_accuracy(clip, tokenizer, captions, place), 4),
    }
    text = text_tower(clip)
    encoded = _encode(vae, text, tokenizer, captions, place)
    unets = {name: place.folder / f"unet-{name}.safetensors" for name in spec.milestones}

    def keep(step: int, weights: dict[str, Tensor]) -> None:
        for name, milestone in spec.milestones.items():
            if step == milestone:
                with atomic_path(unets[name]) as temporary:
                    save_file({key: weight.cpu().contiguous() for key, weight in weights.items()}, temporary)

    unet_losses = train_denoiser(spec.denoiser, max(spec.milestones.values()), encoded, place, keep)
    losses = {"autoencoder": vae_losses, "text": clip_losses, "denoiser": unet_losses}
    return Trained(vae.cpu(), text, tokenizer, measures, losses, unets)


def _encode(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Captions, place: Workplace
) -> Encoded:
    """Encode images and captions once, and write the latents' scale into the autoencoder's configuration."""
    path = place.folder / "latents.pt"
    if not path.exists():
        with atomic_path(path) as temporary:
            torch.save(encode_images(vae, captions, place), temporary)
    means, stds = torch.load(path, weights_only=True)
    factor = scaling_factor(means, stds)
    vae.register_to_config(scaling_factor=factor)
    contexts = encode_texts(text, encode(tokenizer, ["", *captions.texts]))
    return Encoded(means * factor, stds * factor, contexts[1:], captions.image_of, captions.text_of, contexts[0])
