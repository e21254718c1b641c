"""The authors' released VPD weights: fetched, imported and measured, each as one experiment of the matrix."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from vpd.errors import UserError
from vpd.files import read_json, sha256, write_json
from vpd.params import Params
from vpd.spec import ReleasedSpec, Spec

INDEX = "index.json"


def measure_released(params: Params, options: argparse.Namespace) -> list[str]:
    """Measure every released file that the scale lists; return the names of those that could not be had.

    ``options.out`` gets ``metrics/<experiment>.json``, ``panels/<experiment>`` and, last, ``index.json``, which says of
    each file what was found, or why it is missing: other people's links die, and that must not stop a reproduction.
    """
    index, missing = {}, []
    for name, released in params.released.items():
        spec = params.resolve(name)
        try:
            file = _file(name, released, options.archives)
        except UserError as error:
            print(f"vpd: released weights of {name}: {error}", file=sys.stderr)
            index[name] = {"missing": str(error)}
            missing.append(name)
            continue
        index[name] = _measure(spec, file, options)
    for folder in ("metrics", "panels"):
        _remove_others(options.out / folder, index)
    write_json(options.out / INDEX, {"released": index})
    return missing


def _file(name: str, released: ReleasedSpec, archives: Path) -> Path:
    path = Path(released.path)
    if not path.is_file() and released.download:
        from vpd.fetch import fetch

        fetch(released.download, path.parent, archives)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; put the file there, or remove {name} from the scale's released weights"
        )
    return path


def _measure(spec: Spec, file: Path, options: argparse.Namespace) -> dict:
    """Import and evaluate one file; return what the import found out about it."""
    from vpd.evaluation.run import evaluate
    from vpd.jobs import plain_captions, use_threads
    from vpd.weights import import_weights
    from vpd.weights.released import released_spec

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


def _remove_others(folder: Path, index: dict) -> None:
    """Remove results of files that are listed no more, or can no longer be had."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if "missing" in index.get(path.stem, {"missing": ""}):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
