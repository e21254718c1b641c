"""The registered model as MLflow loads it: pictures in base64 become predictions in base64.

MLflow copies this file into the model, beside a copy of this package, and runs it to load the model ("models from
code"), so nothing is pickled. Only MLflow imports it.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from vpd.config.schema import load_spec
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

OPTIONS = ("text", "scene")


class Predictor(PythonModel):
    """``vpd predict`` behind MLflow's interface: the same network, preparation and PNG files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the model's files, on the best device."""
        from vpd.evaluation.run import predictor
        from vpd.predict.run import say
        from vpd.predict.weights import build, load_weights

        self.spec = load_spec(context.artifacts["spec"])
        self.classes = read_json(context.artifacts["classes"])["classes"]
        state = load_weights(Path(context.artifacts["weights"]), self.spec, say)
        self.model = build(self.spec, checkpoint_of(context), state)
        self.network = predictor(self.spec, self.model)
        self.shapes = {name: tensor.to("meta") for name, tensor in state.items()}

    @torch.inference_mode()
    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """Columns ``png`` (base64), ``width`` and ``height`` for rows with ``image`` (base64) and the task's options."""
        rows = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                rows.append(self.answer(row, f"row {number}"))
            except UserError as fault:
                raise UserError(f"row {number}: {fault}") from None
        return pd.DataFrame(rows, columns=["png", "width", "height"])

    def answer(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """One picture's prediction, which is the PNG file that ``vpd predict`` writes for it."""
        from vpd.predict.inputs import Job
        from vpd.predict.pictures import read_picture
        from vpd.predict.run import check_options, choose

        options = {key: row[key] for key in OPTIONS if isinstance(row.get(key), str)}
        options = dict.fromkeys(OPTIONS) | options
        check_options(self.spec, **options)
        task = choose(self.spec, self.shapes, names=self.classes, **options)(self.model, self.network)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(Path(folder) / "image", Path(folder), "prediction")
            job.image.write_bytes(decoded(row["image"]))
            try:
                image, _ = read_picture(job.image)
            except UserError as fault:
                raise UserError(str(fault).replace(str(job.image), "the image")) from None
            torch.manual_seed(self.spec.seeds[0])  # latents may be samples
            task.save(task.infer(image, name), job)
            png = base64.b64encode(job.picture.read_bytes()).decode()
        return {"png": png, "width": image.shape[1], "height": image.shape[0]}


def checkpoint_of(context: PythonModelContext) -> Path:
    """The copy inside the model, or the folder that the model refers to; UserError if that is another one."""
    from vpd.tracking.locate import check_checkpoint

    if "checkpoint" in context.artifacts:
        return Path(context.artifacts["checkpoint"])
    return check_checkpoint(Path(context.model_config["checkpoint"]), context.model_config["checkpoint_digest"])


def decoded(image: Any) -> bytes:
    """Bytes of a base64 string, with or without the beginning of a data URL."""
    text = str(image)
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise UserError(f"the image is not base64 ({error}); encode the bytes of a JPEG or PNG file") from None


set_model(Predictor())
