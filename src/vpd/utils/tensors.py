"""Weights as others store them: whatever is wrong with a file, or a folder that a library loads, is a sentence."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vpd.utils.errors import UserError, curable
from vpd.utils.files import AGAIN, readable

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""In which a network can be evaluated."""


def set_up_inference(model: nn.Module, device: str, precision: str = "fp32") -> None:
    """Move a network to ``device`` and a key of ``PRECISIONS``, in evaluation mode.

    On the cores its bf16 convolutions have channels last, for which processors have faster instructions.
    """
    model.to(device, PRECISIONS[precision]).eval()
    if precision == "bf16" and torch.device(device).type == "cpu":
        model.to(memory_format=torch.channels_last)


def read_safetensors(path: Path, cure: str = AGAIN) -> dict[str, Tensor]:
    """Read tensors by name; UserError with ``cure`` if the file is missing or damaged."""
    with readable(path, cure, cure), understood(path, cure):
        return load_file(path)


def load_folder(folder: Path, cure: str = "make or download it again") -> contextlib.AbstractContextManager[None]:
    """Turn whatever a library raises while it loads ``folder`` into a UserError; a pipe would keep it waiting."""
    for path in folder.iterdir():
        with readable(path, cure) if not path.is_dir() else contextlib.nullcontext():
            pass
    return understood(folder, cure)


@contextlib.contextmanager
def understood(path: Path, cure: str) -> Iterator[None]:
    """Turn whatever a library stumbles over in ``path`` into a UserError, and say if it is the memory that is full."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(curable(error) or f"{path} is damaged or cut off ({reason(error)}); {cure}") from error


def reason(error: Exception) -> str:
    """Return a library's message on one line, shortened."""
    return " ".join(str(error).split())[:150]
