"""The registered model as MLflow loads it: pictures in base64 become predictions in base64.

MLflow copies this file into the model, beside a copy of this package, and runs it to load the model ("models from
code"), so nothing is pickled. Only MLflow imports it.
"""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from vpd.config.schema import load_spec
from vpd.utils.errors import UserError
from vpd.utils.files import read_json


class Predictor(PythonModel):
    """``vpd predict`` behind MLflow's interface: the same network, preparation and PNG files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from the model's files, on the best device."""
        from vpd.predict import load_network
        from vpd.tracking.models import check_checkpoint

        files, config = context.artifacts, context.model_config or {}
        if "checkpoint" in files:
            checkpoint = Path(files["checkpoint"])
        else:
            checkpoint = check_checkpoint(Path(config["checkpoint"]), config["checkpoint_digest"])
        classes = read_json(files["classes"])["classes"]
        self.network = load_network(load_spec(files["spec"]), Path(files["weights"]), checkpoint, classes)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Columns ``png`` (base64), ``width`` and ``height`` for rows with ``image`` (base64) and the task's options."""
        rows = []
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                rows.append(self.answer(row, f"row {number}"))
            except UserError as fault:
                raise UserError(f"row {number}: {fault}") from None
        return pd.DataFrame(rows, columns=["png", "width", "height"])

    def answer(self, row: Mapping[Hashable, Any], name: str) -> dict[str, Any]:
        """Predict for one picture: the same PNG as ``vpd predict``, bit for bit."""
        from vpd.predict import build_task
        from vpd.predict.pictures import read_picture
        from vpd.predict.run import infer

        options = {key: row[key] if isinstance(row.get(key), str) else None for key in ("text", "scene")}
        task = build_task(self.network, **options)
        with tempfile.NamedTemporaryFile() as file:
            file.write(decoded(row["image"]))
            file.flush()
            try:
                image = read_picture(Path(file.name))
            except UserError as fault:
                raise UserError(str(fault).replace(file.name, "the image")) from None
        png = io.BytesIO()
        infer(self.network.spec, task, image, name).png.save(png, "PNG")
        return {"png": base64.b64encode(png.getvalue()).decode(), "width": image.shape[1], "height": image.shape[0]}


def decoded(image: object) -> bytes:
    """Decode a base64 string, with or without the beginning of a data URL."""
    text = str(image)
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise UserError(f"the image is not base64 ({error}); encode the bytes of a JPEG or PNG file") from None


set_model(Predictor())
