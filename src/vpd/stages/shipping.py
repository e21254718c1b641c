"""The ``ship`` stage: puts the weights that a scale pre-trained, or the networks that it trained, into git with a model card."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vpd.config.params import Params
from vpd.config.paths import Paths, shipped
from vpd.measures.results import PICTURE, TABLE
from vpd.pretrained.shipped import ship, shipped_facts
from vpd.stages.keys import is_current, pretrained_here
from vpd.training.runs import seed_folder
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_path, write_json, write_text
from vpd.utils.fingerprint import MANIFEST, read_manifest

SPEC, CLASSES, FINAL = "spec.json", "classes.json", "final.safetensors"  # of a trained network
CARD = """# Weights of the scale `{scale}`

Small networks pre-trained on synthetic rooms, in half precision. Each folder has a manifest with the digests of its files and the
settings that made them; `vpd` refuses weights that differ from either. The diffusion models (`sd-*`, `pixart-xl`) are ordinary
pipelines for `diffusers.DiffusionPipeline.from_pretrained`. They know {count} kinds of rooms and {classes} classes, nothing else.

Licence: MIT, as the code; the images are drawn, so nobody else has rights in them. `make pretrain` makes all of it anew.

| network | pre-training | images seen | parameters | measured on held-out images |
|---|---|---|---|---|
{rows}
{measured}"""
MEASURED = """
## What the milestones of Stable Diffusion 1 have learnt

Measured on {scenes} scenes that no dataset shows; each gives a prompt that names its room and one thing with its colour.

| images | thing found | room found | Fréchet distance | class names point | words point | right caption costs less |
|---|---|---|---|---|---|---|
{rows}

- Thing, room: share of images in which another network, trained on scenes alone, sharp and blurred, finds what the prompt
  names. A thing counts as found from the probability at which, in other scenes, that network finds as many things as there are.
- Fréchet distance: between that network's features of these images and of as many other real ones, in units of the variance of
  the real ones; lower is better.
- Class names, words: area under the ROC curve of a cross-attention map against the pixels of its class: for class names as VPD
  feeds them, and for the same words in captions; mean over levels, images and classes; 0.5 is chance.
- Real images of other prompts show what chance finds, reconstructions what the autoencoder loses.
- Right caption: share of images whose noise is predicted better with their own caption than with another scene's.

`{table}` has all of it, also by level and by time step. `{picture}` shows what each draws.
"""
SHOWN = ("thing", "room", "frechet", "class_auc", "word_auc", "text_matters")


def ship_weights(params: Params, paths: Paths) -> list[str]:
    """Write all pre-trained weights of the scale, their measures and a model card to weights/; return their names.

    Raises:
        UserError: a checkpoint, a backbone or the measures are missing or not current.
    """
    names = pretrained_here(params)
    if not names:
        return []
    for name in names:
        _ship_checkpoint(name, params, paths)
    _ship_measures(params, paths)
    _write_card(params)
    return names


def ship_one(name: str, params: Params, paths: Paths) -> None:
    """Write one network to weights/: a checkpoint or backbone that the scale pre-trained, or a trained experiment.

    Raises:
        UserError: it is missing, or not made with the present settings, code and inputs.
    """
    if name not in pretrained_here(params):
        ship_network(name, params, paths)
        return
    _ship_checkpoint(name, params, paths)
    _write_card(params)


def _write_card(params: Params) -> None:
    """Write README.md about the pre-trained networks that are in weights/."""
    names = [name for name in pretrained_here(params) if (shipped(params.scale, name) / MANIFEST).is_file()]
    write_text(shipped(params.scale, "README.md"), model_card(params, names))


def _ship_checkpoint(name: str, params: Params, paths: Paths) -> None:
    stage = "checkpoint" if name in params.checkpoints else "backbone"
    if not is_current(stage, name, params, paths):
        cure = f"run `vpd {stage} {name} --scale {params.scale}` first"
        raise UserError(f"{paths.checkpoint(name)} is not what params.yaml asks for; {cure}")
    if name in params.pretraining.milestones:
        manifest = read_manifest(paths.pretraining)
        facts = {key: manifest[key] for key in ("parameters", "reconstruction_psnr", "matching_accuracy")}
        facts |= {"objective": "denoising", "images_seen": params.pretraining.milestones[name]}
    else:
        manifest = read_manifest(paths.checkpoint(name))
        facts = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    ship(paths.checkpoint(name), shipped(params.scale, name), params.recipe(name), facts)


def _ship_measures(params: Params, paths: Paths) -> None:
    if not is_current("measure", "", params, paths):
        raise UserError(
            f"{paths.measures} is not what params.yaml asks for; run `vpd measure --scale {params.scale}` first"
        )
    for name in (TABLE, PICTURE):
        target = shipped(params.scale, name)
        if params.measures:
            with atomic_path(target) as temporary:
                shutil.copyfile(paths.measures / name, temporary)
        else:
            target.unlink(missing_ok=True)


def ship_network(name: str, params: Params, paths: Paths) -> None:
    """Write the first seed of a trained experiment to weights/, so that `vpd predict` works at once.

    Raises:
        UserError: the experiment is not trained, or not with the present settings, code and inputs.
    """
    from vpd.predict import class_names

    if not is_current("train", name, params, paths):
        raise UserError(
            f"{name} is not trained as params.yaml asks for; run `vpd train {name} --scale {params.scale}` first"
        )
    spec = params.resolve(name)
    names = class_names(spec, paths.dataset(spec.dataset))
    weights = seed_folder(paths.runs(name), spec.seeds[0]) / FINAL
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copyfile(weights, folder / FINAL)
        shutil.copyfile(paths.spec(name), folder / SPEC)
        if names is not None:
            write_json(folder / CLASSES, {"classes": names})
        ship(
            folder,
            shipped(params.scale, name),
            spec.model_dump(mode="json"),
            {"task": spec.task, "seed": spec.seeds[0], "trained": sha256(weights)},
        )


def model_card(params: Params, names: Iterable[str]) -> str:
    """Write README.md of the shipped weights: what they saw, how large they are, and what was measured."""
    from vpd.world import classes
    from vpd.world.rooms import KINDS

    rows = [_row(name, shipped_facts(shipped(params.scale, name))) for name in names]
    size = {"count": len(KINDS), "classes": len(classes.CLASSES)}
    return CARD.format(scale=params.scale, **size, rows="\n".join(rows), measured=_measured(params))


def _measured(params: Params) -> str:
    """The section about the measures of the small Stable Diffusion, if there are any."""
    if params.measures is None or not shipped(params.scale, TABLE).is_file():
        return ""
    with shipped(params.scale, TABLE).open(encoding="utf-8", newline="") as file:
        rows = [[line["images"], *(_short(line[key]) for key in SHOWN)] for line in csv.DictReader(file)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return MEASURED.format(scenes=params.measures.scenes, rows=lines, table=TABLE, picture=PICTURE)


def _short(value: str) -> str:
    return f"{float(value):.2f}" if value else ""


def _row(name: str, facts: dict[str, Any]) -> str:
    parameters = sum(facts["parameters"].values()) / 1e6
    phases = [phase["measures"]["trained"] for phase in facts.get("phases", {}).values()]
    measures = [(key, value) for phase in phases for key, value in phase.items()]
    told = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in measures) or "below"
    if loss := facts.get("loss"):
        told = "not measured; training loss {first:.3g} to {last:.3g}".format_map(loss["denoiser"])
    return f"| {name} | {facts['objective']} | {facts['images_seen']:,} | {parameters:.1f} M | {told} |"
