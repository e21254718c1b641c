"""The tensors that a trained network is stored as: what they are, and whether others fit in their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpd.utils.errors import UserError


def trained_state(model: nn.Module, frozen: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Copies of all tensors but those whose names begin like ``frozen``, contiguous and in main memory."""
    return copied(_trained(model, frozen))


def load_trained_state(model: nn.Module, state: dict[str, Tensor], frozen: tuple[str, ...] = ()) -> None:
    """Load what ``trained_state`` gave; UserError if any tensor is missing, unexpected or of another shape."""
    check_fit(_trained(model, frozen), state, "the weights do not fit this model", "use weights trained with this spec")
    with torch.no_grad():
        model.load_state_dict(state, strict=False)


def check_fit(own: dict[str, Tensor], state: dict[str, Tensor], complaint: str, cure: str) -> None:
    """UserError ``complaint (faults); cure`` unless ``state`` has the names and shapes of ``own``."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    bent = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    faults = [
        f"{len(names)} {fault}, first '{names[0]}'"
        for fault, names in (("missing", missing), ("unexpected", extra), ("of another shape", bent))
        if names
    ]
    if faults:
        raise UserError(f"{complaint} ({'; '.join(faults)}); {cure}")


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in main memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def _trained(model: nn.Module, frozen: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}
