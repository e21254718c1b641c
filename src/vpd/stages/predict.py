"""``vpd predict``: finds the parts of a trained network and predicts for pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from vpd.config.params import Params
from vpd.config.paths import Paths, shipped
from vpd.config.schema import Spec, load_spec
from vpd.pretrained.shipped import check_shipped
from vpd.stages.shipping import CLASSES, SPEC
from vpd.training.runs import seed_folder
from vpd.utils.errors import UserError
from vpd.utils.files import MANIFEST
from vpd.utils.validation import read_as


class Classes(TypedDict):
    """File of the names of segmentation classes."""

    classes: list[str]


def predict_pictures(
    name: str,
    images: Sequence[Path],
    out: Path,
    params: Params | None,
    given: Mapping[str, Path],
    uri: str,
    *,
    text: str | None = None,
    scene: str | None = None,
) -> int:
    """Predict for pictures (files, and folders that are searched) into ``out``; return how many failed.

    Args:
        name: experiment of ``params``, or ``models:/NAME/VERSION`` of the MLflow store ``uri`` (``params`` is then None).
        given: ``spec``, ``weights``, ``checkpoint`` and ``data`` that replace the usual ones.
        text: expression to find (referring segmentation).
        scene: kind of room (depth).
    """
    if params is None:
        from vpd.tracking import model_places

        parts = {**model_places(name, uri), **given}
    else:
        parts = {**_trained(name, params), **given}
    if not parts["spec"].is_file():
        target = parts["weights"].parents[1] / MANIFEST
        how = f" (snakemake --cores 2 --config scale={params.scale} -- {target})" if params else ""
        raise UserError(
            f"{parts['spec']} does not exist, so {name} has not been trained here; "
            f"run it first{how}, or give --spec, --weights and --checkpoint"
        )
    spec = load_spec(parts["spec"])
    from vpd.predict import class_names, predict

    names: list[str] | None
    if "classes" in parts:
        names = read_as(Classes, parts["classes"])["classes"]
    else:
        names = class_names(spec, parts["data"]) if parts["data"].is_dir() else None
    return predict(spec, parts["weights"], parts["checkpoint"], images, out, text=text, scene=scene, names=names)


def _trained(name: str, params: Params) -> dict[str, Path]:
    """Where the parts of a trained experiment are: where the workflow puts them, or else in git."""
    spec, paths, own = params.resolve(name), Paths(params.scale), shipped(params.scale, name)
    if not paths.spec(name).is_file() and own.is_dir():
        check_shipped(own)
        parts = {
            "spec": own / SPEC,
            "weights": own / "final.safetensors",
            "checkpoint": _shipped_checkpoint(spec, params),
        }
        return parts | (
            {"classes": own / CLASSES} if (own / CLASSES).is_file() else {"data": paths.dataset(spec.dataset)}
        )
    return {
        "spec": paths.spec(name),
        "weights": seed_folder(paths.runs(name), spec.seeds[0]) / "final.safetensors",
        "checkpoint": paths.checkpoint(spec.checkpoint),
        "data": paths.dataset(spec.dataset),
    }


def _shipped_checkpoint(spec: Spec, params: Params) -> Path:
    """The pipeline folder in git that a shipped network was trained on."""
    folder = Path(params.checkpoint(spec.checkpoint).path or "")
    check_shipped(folder)
    return folder
