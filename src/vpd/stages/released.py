"""Weights that others released, measured here: the authors' VPD, each as one experiment, and public depth models."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from vpd.config.params import Params
from vpd.config.schema import DepthSpec, ReleasedSpec, Spec
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json

INDEX = "index.json"


def measure_released(params: Params, options: argparse.Namespace) -> list[str]:
    """Measure every released file that the scale lists; return the names of those that could not be had.

    ``options.out`` gets ``metrics/<name>.json``, of VPD also ``panels/<name>``, and, last, ``index.json``, which says of
    each file what was found, or why it is missing: other people's links die, and that must not stop a reproduction.
    Its ``released`` are the authors' files, its ``public`` the depth models of others.
    """
    index: dict[str, dict[str, dict]] = {"released": {}, "public": {}}
    for name, released in params.released.items():
        facts, measure = (index["public"], _measure_public) if released.model else (index["released"], _measure)
        try:
            place, origin = _place(name, released, options.archives)
        except UserError as error:
            print(f"vpd: released weights of {name}: {error}", file=sys.stderr)
            facts[name] = {"missing": str(error)}
            continue
        spec = params.resolve(released.experiment or name).model_copy(update={"name": name})
        facts[name] = {**measure(spec, released, place, options), **origin}
    found = {**index["released"], **index["public"]}
    for folder in ("metrics", "panels"):
        _remove_others(options.out / folder, found)
    write_json(options.out / INDEX, index)
    return [name for name in params.released if "missing" in found[name]]


def _place(name: str, released: ReleasedSpec, archives: Path) -> tuple[Path, dict[str, str]]:
    """Where the weights lie, fetched if need be: a file, or a repository's folder with its name and commit."""
    if released.repo:
        from vpd.pretrained.monocular import fetch_monocular

        snapshot = fetch_monocular(name, released)
        return snapshot.folder, {"repo": snapshot.repo, "revision": snapshot.revision}
    if released.model and Path(released.path).is_dir():
        return Path(released.path), {}
    return _file(name, released, archives), {}


def _file(name: str, released: ReleasedSpec, archives: Path) -> Path:
    path = Path(released.path)
    if not path.is_file() and released.download:
        from vpd.download import fetch

        fetch(released.download, path.parent, archives)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; put the file there, or remove {name} from the scale's released weights"
        )
    return path


def _measure(spec: Spec, released: ReleasedSpec, file: Path, options: argparse.Namespace) -> dict:
    """Import and evaluate one file; return what the import found out about it."""
    from vpd.evaluation.run import evaluate
    from vpd.pretrained import import_weights
    from vpd.pretrained.released import released_spec
    from vpd.stages.jobs import plain_captions, use_threads

    spec = released_spec(spec)
    use_threads(spec)
    plain_captions()
    data, checkpoint = options.data / spec.dataset, options.checkpoints / spec.checkpoint
    work, metrics = options.state / spec.name, options.out / "metrics" / f"{spec.name}.json"
    manifest = import_weights(spec, file, data, checkpoint, work / "runs")
    panels = options.out / "panels" / spec.name
    evaluate(spec, work / "runs", data, checkpoint, metrics, panels, work / "evaluate")
    write_json(metrics, {**read_json(metrics), "provenance": "released-weights", "weights": sha256(file)})
    shutil.rmtree(work)
    return manifest["released"]


def _measure_public(spec: DepthSpec, released: ReleasedSpec, place: Path, options: argparse.Namespace) -> dict:
    """Evaluate one public depth model; return what is known about it."""
    from vpd.evaluation.monocular import evaluate_monocular
    from vpd.pretrained.monocular import open_monocular, weights_file
    from vpd.stages.jobs import use_threads

    use_threads(spec)
    model, file = open_monocular(released.model, place), weights_file(place)
    facts = {"provenance": "released-weights", "weights": sha256(file)}
    metrics = options.out / "metrics" / f"{spec.name}.json"
    evaluate_monocular(spec, model, options.data / spec.dataset, metrics, facts)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"model": released.model, "file": file.name, "sha256": facts["weights"], "parameters": parameters}


def _remove_others(folder: Path, index: dict) -> None:
    """Remove results of files that are listed no more, or can no longer be had."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if "missing" in index.get(path.stem, {"missing": ""}):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
