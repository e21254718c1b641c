"""Predictions for any pictures: classes, the object of an expression, or depth, as files and as panels to look at."""

from vpd.predict.run import predict
from vpd.predict.weights import class_names

__all__ = ["class_names", "predict"]
