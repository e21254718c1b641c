"""Pre-training of one small diffusion model of another family, from captioned images to its pipeline folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtAlphaPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from vpd.config.schema import DiffusionSpec, PretrainingSpec
from vpd.pretraining.captions import Captions, load_captions
from vpd.pretraining.clip import encode
from vpd.pretraining.diffusion.autoencoder import encode_images
from vpd.pretraining.diffusion.denoiser import Encoded, Read, build_scheduler, denoising_phase
from vpd.pretraining.families.language import encode_t5, t5_mask, train_t5, train_t5_tokenizer
from vpd.pretraining.families.made_from import diffusion_fingerprint, taken_parts
from vpd.pretraining.families.networks import build_transformer, build_unet2, velocity_scheduler
from vpd.pretraining.loop import averaged, complete, initialised_by, turn_off_library_bars
from vpd.pretraining.workdir import Workdir, open_workdir
from vpd.utils.digests import changed
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.fingerprint import is_finished

Losses = dict[str, list[float]]  # by phase, of every step


@dataclass(frozen=True)
class Design:
    """One model: its network with fresh weights, what that predicts, and its texts."""

    part: str  # name of the network in the pipeline
    network: Any
    scheduler: DDIMScheduler
    tokenizer: Any
    text: Any
    tokens: Tensor  # (1 + T,L), of the empty text and of every caption
    read: Read  # of tokens (B,L)
    pipeline: Any  # diffusers' class


def pretrain_diffusion(
    name: str,
    spec: DiffusionSpec,
    common: PretrainingSpec,
    captions: Path,
    source: Path,
    out: Path,
    state: Path,
    *,
    save_every: int = 100,
) -> None:
    """Pre-train a small diffusion model unless ``out`` is finished already; an interrupted run resumes to the bit.

    Args:
        name: the checkpoint's in params.yaml.
        spec: network and training.
        common: budget, seed and threads, which it shares with the small Stable Diffusion.
        captions: a captions dataset.
        source: the small Stable Diffusion, as a finished pre-training or as weights in git. Its autoencoder, and for a U-Net
            its text encoder, are taken with the values that git holds, in half precision: both make the same model (U9).
        out: gets the pipeline, history.csv and the manifest, all at once at the end.
        state: holds the resumable state, saved every ``save_every`` steps; removed at the end.

    Raises:
        UserError: an input is missing or damaged, a loss is not finite, or another process works in ``state``.
    """
    made_from = diffusion_fingerprint(name, spec, common, captions, source)
    if is_finished(out, made_from):
        return
    given, taken = taken_parts(spec, source)
    if differing := changed(given, taken):
        raise UserError(f"{given} differs from its manifest in {', '.join(differing)}; make or restore it again")
    turn_off_library_bars()
    with open_workdir(state, made_from, common, save_every) as workdir:
        images, parts = load_captions(captions), _rounded(given, taken, workdir)
        vae = AutoencoderKL.from_pretrained(parts / "vae", local_files_only=True)
        means, stds = _latents(vae, images, workdir)
        build = _unet if spec.unet else _transformer
        design, losses = build(f"diffusion.{name}", spec, parts, images, max(means.shape[-2:]), workdir)
        encoded = Encoded(means, stds, design.tokens[1:], images.image_of, images.text_of, design.tokens[0])
        losses["denoiser"] = _train(f"diffusion.{name}", spec, common, design, encoded, workdir)
        with atomic_folder(out) as folder:
            _save(design, vae, parts, folder)
            complete(folder, made_from, losses, _facts(name, spec, common, design, vae, losses))


def _rounded(given: Path, files: Iterable[str], workdir: Workdir) -> Path:
    """Copy the taken parts with the values that half precision holds; return their folder."""
    out = workdir.folder / "parts"
    if not out.exists():
        with atomic_folder(out) as folder:
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                copy = _round if name.endswith(".safetensors") else shutil.copyfile
                copy(given / name, folder / name)
    return out


def _round(source: Path, target: Path) -> None:
    """Copy weights in single precision with the values that git holds, in half precision where that is enough."""
    save_file({name: _rounded_tensor(x) for name, x in load_file(source).items()}, target, {"format": "pt"})


def _rounded_tensor(x: Tensor) -> Tensor:
    half = x.half().float() if x.is_floating_point() else x
    return half if half.isfinite().all() else x


def _latents(vae: AutoencoderKL, images: Captions, workdir: Workdir) -> tuple[Tensor, Tensor]:
    """Scaled means and standard deviations of the images' latents, computed once."""
    path = workdir.folder / "latents.pt"
    if not path.exists():
        with torch.no_grad(), atomic_path(path) as temporary:
            torch.save(encode_images(vae.to(workdir.device).eval(), images, workdir.device), temporary)
    means, stds = torch.load(path, weights_only=True)
    factor = vae.config.scaling_factor
    vae.cpu()
    return means * factor, stds * factor


def _unet(
    _key: str, spec: DiffusionSpec, parts: Path, images: Captions, side: int, workdir: Workdir
) -> tuple[Design, Losses]:
    """A U-Net that predicts v and reads the small Stable Diffusion's texts; nothing is trained before it."""
    assert spec.unet is not None
    tokenizer = CLIPTokenizer.from_pretrained(parts / "tokenizer", local_files_only=True)
    text = CLIPTextModel.from_pretrained(parts / "text_encoder", local_files_only=True).eval()
    with initialised_by(workdir.seed, "denoiser"):
        network = build_unet2(spec.unet, text.config.hidden_size, side)

    @torch.no_grad()
    def read(tokens: Tensor) -> dict[str, Tensor]:
        return {"encoder_hidden_states": text(tokens).last_hidden_state}

    tokens, pipeline = encode(tokenizer, ["", *images.texts]), StableDiffusionPipeline
    return Design("unet", network, velocity_scheduler(), tokenizer, text, tokens, read, pipeline), {}


def _transformer(
    key: str, spec: DiffusionSpec, _parts: Path, images: Captions, side: int, workdir: Workdir
) -> tuple[Design, Losses]:
    """A transformer that predicts noise and reads a T5, which is trained first; and the losses of that."""
    assert spec.transformer is not None
    language, key = spec.transformer.language, f"{key}.transformer.language"
    with initialised_by(workdir.seed, "denoiser"):
        network = build_transformer(spec.transformer, side)
    tokenizer = train_t5_tokenizer(images.texts, language.vocabulary, language.length, f"{key}.vocabulary")
    text, losses = train_t5(language, tokenizer, images.texts, workdir, key)

    @torch.no_grad()
    def read(tokens: Tensor) -> dict[str, Tensor]:
        mask = t5_mask(tokens)
        states = text(input_ids=tokens, attention_mask=mask).last_hidden_state
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    tokens, pipeline = encode_t5(tokenizer, ["", *images.texts]), PixArtAlphaPipeline
    design = Design("transformer", network, build_scheduler(), tokenizer, text, tokens, read, pipeline)
    return design, {"language": losses}


def _train(
    key: str, spec: DiffusionSpec, common: PretrainingSpec, design: Design, encoded: Encoded, workdir: Workdir
) -> list[float]:
    """Train ``design.network`` and give it the averaged weights; return the loss of every step."""
    design.text.to(workdir.device)
    steps = (common.images_seen or 0) // spec.batch_size
    given = design.scheduler, design.read, encoded, spec, key, steps, workdir
    phase, loss_of = denoising_phase(design.network, *given)
    losses = phase.train(workdir, loss_of)
    design.network.load_state_dict(phase.average)
    design.network.cpu().eval()
    design.text.cpu()
    return losses


def _save(design: Design, vae: AutoencoderKL, taken: Path, folder: Path) -> None:
    """Write the pipeline, in which the parts that were taken keep the bytes of the folder ``taken``."""
    own = {design.part: design.network, "tokenizer": design.tokenizer, "text_encoder": design.text, "vae": vae}
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    more = unused if design.pipeline is StableDiffusionPipeline else {}
    pipeline = design.pipeline(**own, scheduler=design.scheduler, **more)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in taken.iterdir():
        shutil.rmtree(folder / part.name)
        shutil.copytree(part, folder / part.name)


def _facts(
    name: str, spec: DiffusionSpec, common: PretrainingSpec, design: Design, vae: AutoencoderKL, losses: Losses
) -> dict[str, Any]:
    """What the manifest says."""
    networks = {"vae": vae, "text_encoder": design.text, design.part: design.network}
    means = {phase: [round(loss, 6) for _, loss in averaged(values)] for phase, values in losses.items()}
    return {
        "name": name,
        "family": spec.family,
        "objective": f"denoising, {design.scheduler.config.prediction_type.replace('_', ' ')}",
        "images_seen": (common.images_seen or 0) // spec.batch_size * spec.batch_size,
        "steps": {phase: len(values) for phase, values in losses.items()},
        "parameters": {part: network.num_parameters() for part, network in networks.items()},
        "loss": {phase: {"first": values[0], "last": values[-1]} for phase, values in means.items()},
    }
