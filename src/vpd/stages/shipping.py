"""The ``ship`` stage: puts the weights that a scale pre-trained, or the networks that it trained, into git with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any

from vpd.config.params import Params
from vpd.config.paths import WEIGHTS, Paths, shipped
from vpd.pretrained.shipped import ship, shipped_facts
from vpd.stages.keys import is_current, pretrained_here
from vpd.utils.errors import UserError
from vpd.utils.files import write_text
from vpd.utils.fingerprint import read_manifest

SAMPLES = "samples.png"
CARD = """# Weights of the scale `{scale}`

Small networks pre-trained on synthetic rooms, in half precision. Each folder has a manifest with the digests of its files and the
settings that made them; `vpd` refuses weights that differ from either. The Stable Diffusion folders are ordinary pipelines for
`diffusers.StableDiffusionPipeline.from_pretrained`. They know {count} kinds of rooms and {classes} classes, and nothing else.

Licence: MIT, as the code; the images are drawn, so nobody else has rights in them. `make pretrain` makes all of it anew.

| network | pre-training | images seen | parameters | measured on held-out images |
|---|---|---|---|---|
{rows}
"""


def ship_weights(params: Params, paths: Paths) -> list[str]:
    """Write all pre-trained weights of the scale, their samples and a model card to weights/; return their names.

    Raises:
        UserError: a checkpoint or backbone is missing or not current.
    """
    names = pretrained_here(params)
    if not names:
        return []
    for name in names:
        _ship_checkpoint(name, params, paths)
    root = WEIGHTS / params.scale
    shutil.copyfile(paths.pretraining / SAMPLES, root / SAMPLES)
    write_text(root / "README.md", model_card(params, names))
    return names


def _ship_checkpoint(name: str, params: Params, paths: Paths) -> None:
    stage = "checkpoint" if name in params.checkpoints else "backbone"
    if not is_current(stage, name, params, paths):
        raise UserError(f"{paths.checkpoint(name)} is not what params.yaml asks for; run `vpd {stage} {name}` first")
    if stage == "checkpoint":
        manifest = read_manifest(paths.pretraining)
        facts = {key: manifest[key] for key in ("parameters", "measures")}
        facts |= {"objective": "denoising", "images_seen": params.pretraining.milestones[name]}
    else:
        manifest = read_manifest(paths.checkpoint(name))
        facts = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    ship(paths.checkpoint(name), shipped(params.scale, name), params.recipe(name), facts)


def model_card(params: Params, names: Iterable[str]) -> str:
    """Write README.md of the shipped weights: what they saw, how large they are, and what was measured."""
    from vpd.world.classes import CLASSES
    from vpd.world.rooms import KINDS

    rows = [_row(name, shipped_facts(shipped(params.scale, name))) for name in names]
    return CARD.format(scale=params.scale, count=len(KINDS), classes=len(CLASSES), rows="\n".join(rows))


def _row(name: str, facts: dict[str, Any]) -> str:
    parameters = sum(facts["parameters"].values()) / 1e6
    measures = facts.get("measures", {})
    for phase in facts.get("phases", {}).values():
        measures = {**measures, **phase["measures"]["trained"]}
    told = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in measures.items())
    return f"| {name} | {facts['objective']} | {facts['images_seen']:,} | {parameters:.1f} M | {told} |"
