"""What a small diffusion model of another family is made from; planning imports it without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vpd.config.schema import DiffusionSpec, PretrainingSpec
from vpd.pretraining.workdir import SHARED
from vpd.utils.digests import digest
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import Fingerprint, fingerprint, manifest_path, read_manifest

CODE = (*SHARED, "pretraining/families", *(f"pretraining/diffusion/{module}" for module in ("autoencoder", "denoiser")))
COMMON = {"seed", "threads", "images_seen"}  # keys of `pretraining` that hold for every diffusion model of a scale


def diffusion_fingerprint(
    name: str, spec: DiffusionSpec, common: PretrainingSpec, captions: Path, pretraining: Path
) -> Fingerprint:
    """Fingerprint the checkpoint ``name``; UserError if the captions dataset or the small Stable Diffusion is missing.

    Of the small Stable Diffusion only the parts count that are taken from it: its U-Net may be another one.
    """
    settings = {"checkpoint": name, **spec.model_dump(mode="json"), **common.model_dump(mode="json", include=COMMON)}
    made_from = fingerprint(settings, CODE, {"captions": captions})
    _, files = taken_parts(spec, pretraining)
    return replace(made_from, inputs={**made_from.inputs, "pretraining": digest(files)})


def taken_parts(spec: DiffusionSpec, pretraining: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder of the small Stable Diffusion's last milestone, and the files taken from there by name and SHA-256."""
    manifest = read_manifest(pretraining, "milestones")
    milestones = manifest["milestones"]
    if not milestones:
        raise UserError(f"{manifest_path(pretraining)} lists no milestones, so there is no autoencoder to take")
    last = max(milestones, key=lambda name: milestones[name])
    parts = ("vae", "text_encoder", "tokenizer") if spec.unet else ("vae",)
    beginnings = tuple(f"{last}/{part}/" for part in parts)
    own = {name.partition("/")[2]: sha256 for name, sha256 in manifest["files"].items() if name.startswith(beginnings)}
    return pretraining / last, own
