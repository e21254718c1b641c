"""A trained network as a folder in MLflow's model format: files, code, signature, input example, requirements."""

from __future__ import annotations

import base64
import io
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vpd
from vpd.config.schema import Spec
from vpd.tracking.candidates import Candidate
from vpd.utils.files import write_json

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

CODE = Path(__file__).with_name("served.py")
NOT_NEEDED = ("dvc", "ruamel.yaml.clib", "snakemake")
"""Requirements of this project that run the workflow and predict nothing."""
EXAMPLES = {"text": "the red chair", "scene": "kitchen"}
PNG = {
    "segmentation": "class ids, with the classes' colours as palette",
    "referring": "255 where the object is and 0 elsewhere",
    "depth": "16-bit millimetres",
}


def save_package(folder: Path, found: Candidate, scratch: Path, mlflow_model: Model) -> None:
    """Write the model into the new ``folder``; ``scratch`` is an empty folder for what is made up on the way."""
    from mlflow import pyfunc

    write_json(scratch / "classes.json", {"classes": found.classes})
    artifacts = {
        "spec": found.spec_file,
        "weights": found.weights,
        "manifest": found.manifest,
        "classes": scratch / "classes.json",
    }
    config = None
    if found.stored == "copied":
        artifacts["checkpoint"] = found.checkpoint
    else:
        place = found.checkpoint.resolve()
        config = {"checkpoint": str(place), "checkpoint_digest": found.checkpoint_digest}
    pyfunc.save_model(
        folder,
        python_model=CODE,
        code_paths=[str(Path(vpd.__file__).parent)],
        artifacts={name: str(_plain(path, scratch)) for name, path in artifacts.items()},
        model_config=config,
        signature=signature(found.spec),
        input_example=input_example(found.spec),
        pip_requirements=requirements(),
        metadata=description_data(found),
        mlflow_model=mlflow_model,
    )


def _plain(path: Path, scratch: Path) -> Path:
    """``path``, or a copy of it if links into a cache are part of it, which MLflow does not follow."""
    if not any(part.is_symlink() for part in (path, *path.rglob("*"))):
        return path.resolve()
    copy = scratch / path.name
    return Path(shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy))


def description_data(found: Candidate) -> dict[str, Any]:
    """What the MLmodel file says about the network."""
    spec = found.spec
    return {"task": spec.task, "experiment": spec.name, "scale": spec.scale, "png": PNG[spec.task]}


def options(spec: Spec) -> list[tuple[str, bool]]:
    """Inputs beside the picture, and whether they must be given."""
    if spec.task == "referring":
        return [("text", True)]
    prompt = getattr(spec.model, "prompt", None)
    return [("scene", False)] if prompt is not None and prompt.strategy == "scene" else []


def signature(spec: Spec) -> ModelSignature:
    """Columns that go in and come out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("string", "image")] + [ColSpec("string", name, required=must) for name, must in options(spec)]
    outputs = [ColSpec("string", "png"), ColSpec("long", "width"), ColSpec("long", "height")]
    return ModelSignature(Schema(inputs), Schema(outputs))


def input_example(spec: Spec) -> Any:
    """One row: a small picture, and the options of the task."""
    import pandas as pd

    row = {"image": _example_image()} | {name: EXAMPLES[name] for name, _ in options(spec)}
    return pd.DataFrame([row])


def _example_image() -> str:
    """A PNG in base64 with something to tell apart: floor, wall and a ball."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (96, 64), (205, 200, 185))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 44, 95, 63), fill=(120, 85, 60))
    draw.ellipse((34, 24, 62, 52), fill=(190, 40, 35))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def requirements() -> list[str]:
    """This project's requirements as they are installed here; the project itself comes along as code."""
    declared = [text for text in metadata.requires("vpd") or [] if "extra ==" not in text]
    names = [re.match(r"[\w.-]+", text)[0] for text in declared]
    return [f"{name}=={version}" for name in names if name not in NOT_NEEDED and (version := _installed(name))]


def _installed(name: str) -> str | None:
    """Version without its local part, such as +cpu; None for what only other platforms need."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
