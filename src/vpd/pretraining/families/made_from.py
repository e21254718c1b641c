"""What a small diffusion model of another family is made from; planning imports it without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vpd.config.schema import DiffusionSpec, PretrainingSpec
from vpd.pretraining.workdir import SHARED
from vpd.utils.digests import digest
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import Fingerprint, fingerprint, manifest_path, read_manifest

DENOISING = ("pretraining/diffusion/autoencoder", "pretraining/diffusion/denoiser")
CODE = (*SHARED, *DENOISING, "pretraining/families")
COMMON = {"seed", "threads", "images_seen"}  # keys of `pretraining` that hold for every diffusion model of a scale


def diffusion_fingerprint(
    name: str, spec: DiffusionSpec, common: PretrainingSpec, captions: Path, source: Path
) -> Fingerprint:
    """Fingerprint the checkpoint ``name``; UserError if the captions dataset or the small Stable Diffusion is missing.

    Of the small Stable Diffusion ``source`` only the parts count that are taken from it: its U-Net may be another one.
    """
    settings = {"checkpoint": name, **spec.model_dump(mode="json"), **common.model_dump(mode="json", include=COMMON)}
    made_from = fingerprint(settings, CODE, {"captions": captions})
    _, files = taken_parts(spec, source)
    return replace(made_from, inputs={**made_from.inputs, "pretraining": digest(files)})


def taken_parts(spec: DiffusionSpec, source: Path) -> tuple[Path, dict[str, str]]:
    """Return the pipeline folder whose parts a model takes, and these files by name and SHA-256.

    Args:
        spec: the model.
        source: a finished pre-training, of which the last milestone counts, or the weights of a milestone in git.
    """
    manifest = read_manifest(source)
    folder, prefix = source, ""
    if "milestones" in manifest:
        milestones = manifest["milestones"]
        if not milestones:
            raise UserError(f"{manifest_path(source)} lists no milestones, so there is no autoencoder to take")
        last = max(milestones, key=lambda name: milestones[name])
        folder, prefix = source / last, f"{last}/"
    parts = ("vae", "text_encoder", "tokenizer") if spec.unet else ("vae",)
    beginnings = tuple(f"{prefix}{part}/" for part in parts)
    files = {name: sha256 for name, sha256 in manifest["files"].items() if name.startswith(beginnings)}
    return folder, {name.removeprefix(prefix): sha256 for name, sha256 in files.items()}
