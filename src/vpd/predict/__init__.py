"""Predict for any picture: load a trained network, read pictures, write predictions and panels."""

from vpd.predict.network import TrainedNetwork, class_names, load_network
from vpd.predict.run import predict
from vpd.predict.tasks import Prediction, Task, build_task

__all__ = ["Prediction", "Task", "TrainedNetwork", "build_task", "class_names", "load_network", "predict"]
