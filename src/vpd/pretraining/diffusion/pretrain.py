"""Pre-training of a small Stable Diffusion, from captioned images to one pipeline folder per milestone."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.config.schema import PretrainingSpec
from vpd.pretraining.captions import Captions, load_captions
from vpd.pretraining.clip import encode, train_tokenizer
from vpd.pretraining.diffusion.autoencoder import encode_images, reconstruction_psnr, scaling_factor, train_autoencoder
from vpd.pretraining.diffusion.denoiser import Encoded, train_denoiser
from vpd.pretraining.diffusion.sampling import sample_rows, save_pipeline
from vpd.pretraining.diffusion.text import encode_texts, matching_accuracy, text_tower, train_clip
from vpd.pretraining.outputs import complete, plot_images
from vpd.pretraining.workdir import Workdir, open_workdir, pretraining_fingerprint
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.fingerprint import is_finished


def pretrain(spec: PretrainingSpec, data: Path, out: Path, state: Path, *, save_every: int = 100) -> None:
    """Pre-train a small Stable Diffusion unless ``out`` is finished already; an interrupted run resumes to the bit.

    The phases are autoencoder, text, latents (encoded once) and denoiser.

    Args:
        spec: networks, training and milestones; without milestones (paper scale) nothing is trained or read.
        data: a captions dataset.
        out: gets a pipeline folder per milestone, samples.png, history.csv and the manifest, all at once at the end.
        state: holds the resumable state; removed at the end.
        save_every: steps between two saved states.

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
            plot_images(sample_rows(spec, captions, vae, folder), list(spec.milestones), folder / "samples.png")
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
    encoded = _encode(vae, text, tokenizer, captions, workdir)
    vae.cpu()

    def save_milestone(step: int, unet: UNet2DConditionModel) -> None:
        for name, milestone in spec.milestones.items():
            if step == milestone:
                save_pipeline(workdir.folder / name, vae, text, tokenizer, unet)

    unet, unet_losses = train_denoiser(spec.denoiser, spec.milestones.values(), encoded, workdir, save_milestone)
    losses = {"autoencoder": vae_losses, "text": text_losses, "denoiser": unet_losses}
    networks = {"vae": vae, "text_encoder": text, "unet": unet}
    return (
        vae,
        losses,
        {
            "milestones": spec.milestones,
            "steps": {phase: len(values) for phase, values in losses.items()},
            "parameters": {name: network.num_parameters() for name, network in networks.items()},
            "vocabulary": len(tokenizer),
            "scaling_factor": vae.config.scaling_factor,
            "measures": measures,
        },
    )


def _encode(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: Captions, workdir: Workdir
) -> Encoded:
    """Encode images and captions once, and write the latents' scale into the autoencoder's configuration."""
    path = workdir.folder / "latents.pt"
    if not path.exists():
        with atomic_path(path) as temporary:
            torch.save(encode_images(vae, captions, workdir.device), temporary)
    means, stds = torch.load(path, weights_only=True)
    factor = scaling_factor(means, stds)
    vae.register_to_config(scaling_factor=factor)
    contexts = encode_texts(text, encode(tokenizer, ["", *captions.texts]))
    return Encoded(means * factor, stds * factor, contexts[1:], captions.image_of, captions.text_of, contexts[0])
