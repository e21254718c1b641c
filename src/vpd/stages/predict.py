"""``vpd predict``: finds the parts of a trained network and predicts for pictures."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import TypedDict

from vpd.config.params import Params
from vpd.config.paths import Paths, shipped
from vpd.config.schema import Spec, load_spec
from vpd.pretrained.shipped import check_shipped
from vpd.stages.shipping import CLASSES, FINAL, SPEC
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
    precision: str = "fp32",
) -> int:
    """Predict for pictures (files, and folders that are searched) into ``out``; return how many failed.

    Args:
        name: experiment of ``params``, or ``models:/NAME/VERSION`` of the MLflow store ``uri`` (``params`` is then None).
        given: ``spec``, ``weights``, ``checkpoint`` and ``data`` that replace the usual ones.
        text: expression to find (referring segmentation).
        scene: kind of room (depth).
        precision: fp32 as in evaluation, or bf16.
    """
    parts = find_parts(name, params, given, uri)
    spec = load_spec(parts["spec"])
    from vpd.predict import predict

    names = class_names_of(spec, parts)
    return predict(
        spec,
        parts["weights"],
        parts["checkpoint"],
        images,
        out,
        text=text,
        scene=scene,
        names=names,
        precision=precision,
    )


def find_parts(
    name: str, params: Params | None, given: Mapping[str, Path], uri: str, root: Path = Path()
) -> dict[str, Path]:
    """Find the parts of a trained network, those ``given`` in place of the usual ones; UserError if it was never trained."""
    if params is None:
        from vpd.tracking import model_places

        usual = model_places(name, uri)
    else:
        usual = trained_parts(name, params, root)
    parts = {**usual, **given}
    if "data" in given:
        if not given["data"].is_dir():
            raise UserError(f"{given['data']} does not exist; name the folder of a prepared dataset (--data)")
        parts.pop("classes", None)
    if not parts["spec"].is_file():
        raise UserError(_untrained(name, parts["spec"], params, root))
    return parts


def _untrained(name: str, spec: Path, params: Params | None, root: Path) -> str:
    """Say that the network ``name`` is not in ``root``, and where it can come from."""
    how = ""
    if params:
        own = sorted(path.parent.name for path in (root / shipped(params.scale, "")).glob(f"*/{SPEC}"))
        if not (root / "dvc.yaml").is_file():
            if not own:
                return f"{root.resolve()} is no project with trained networks; run vpd in the folder of its params.yaml"
            return f"{name} did not come with what was installed, which has {', '.join(own)}; name its project"
        target = Paths(params.scale, root).runs(name) / MANIFEST
        how = f" (snakemake --cores 2 --config scale={params.scale} -- {target})"
    absent = f"{spec} does not exist, so {name} has not been trained here"
    return f"{absent}; run it first{how}, or give --spec, --weights and --checkpoint"


def trained_parts(name: str, params: Params, root: Path = Path()) -> dict[str, Path]:
    """Return where the parts of a trained experiment are in the project ``root``: in the workflow's place, or else in git's."""
    spec, paths, own = params.resolve(name), Paths(params.scale, root), root / shipped(params.scale, name)
    weights = seed_folder(paths.runs(name), spec.seeds[0]) / FINAL
    # The spec and metrics of a trained experiment are in git, so only the weights tell that it was trained here.
    if weights.is_file() or not own.is_dir():
        checkpoint, data = paths.checkpoint(spec.checkpoint), paths.dataset(spec.dataset)
        return {"spec": paths.spec(name), "weights": weights, "checkpoint": checkpoint, "data": data}
    made = check_shipped(own)["recipe"]
    if {**made, "seeds": []} != {**spec.model_dump(mode="json"), "seeds": []}:
        changed = f"{own} was trained with other settings of {name} than {params.source} has now"
        print(f"vpd: {changed}; the predictions are of the old ones", file=sys.stderr, flush=True)
    checkpoint = shipped_checkpoint(spec.checkpoint, params, root)
    parts = {"spec": own / SPEC, "weights": own / FINAL, "checkpoint": checkpoint, "data": paths.dataset(spec.dataset)}
    return parts | ({"classes": own / CLASSES} if (own / CLASSES).is_file() else {})


def pipeline_folder(name: str, params: Params, root: Path = Path()) -> Path:
    """Return where a pipeline is in the project ``root``: what the workflow made, or else what is in git."""
    params.checkpoint(name)  # refuses an unknown name
    made = Paths(params.scale, root).checkpoint(name)
    return made if (made / MANIFEST).is_file() else shipped_checkpoint(name, params, root)


def shipped_checkpoint(name: str, params: Params, root: Path = Path()) -> Path:
    """Return the folder in git of a pipeline that this scale takes or made; UserError if it is missing or damaged."""
    spec = params.backbone(name) if name in params.backbones else params.checkpoint(name)
    folder = root / (spec.path or shipped(params.scale, name))
    check_shipped(folder)
    return folder


def class_names_of(spec: Spec, parts: Mapping[str, Path]) -> list[str] | None:
    """Return the names of the segmentation classes: those that came with the weights, or else the dataset's if it is here."""
    if "classes" in parts:
        return read_as(Classes, parts["classes"])["classes"]
    from vpd.predict import class_names

    return class_names(spec, parts["data"]) if parts["data"].is_dir() else None
