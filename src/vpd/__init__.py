"""VPD, "Unleashing Text-to-Image Diffusion Models for Visual Perception" (ICCV 2023), as one workflow and as a library.

``load`` gives a trained network that predicts for pictures, ``features`` the maps of any Stable Diffusion.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpd.library import Predictor, features, load, pipeline
    from vpd.models.extractor import DiffusionFeatures, FeatureExtractor
    from vpd.predict.predictions import DepthMap, Prediction, ReferredObject, Segments
    from vpd.utils.errors import UserError

__version__ = "0.2.0"
__all__ = [
    "DepthMap",
    "DiffusionFeatures",
    "FeatureExtractor",
    "Prediction",
    "Predictor",
    "ReferredObject",
    "Segments",
    "UserError",
    "features",
    "load",
    "pipeline",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: torch and diffusers take seconds, for which `vpd --help` need not wait."""
    if name not in __all__:
        raise AttributeError(f"module 'vpd' has no attribute '{name}'")
    from vpd import library
    from vpd.predict import predictions

    return getattr(library if hasattr(library, name) else predictions, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
