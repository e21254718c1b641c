"""Predict for any picture: load a trained network, read pictures, write predictions and panels."""

from vpd.predict.network import class_names
from vpd.predict.run import predict

__all__ = ["class_names", "predict"]
