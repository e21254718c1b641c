"""Multiply-adds as mmcv's ``get_model_complexity_info`` counts them, the convention of the GFLOPs in the paper's Table 1.

Its rules (mmcv 1.7, by module type): convolutions with their biases; linear layers without; two per element of an
affine norm's input; one per element of a ReLU's output and of a pooling's input. It sees modules only, so the matrix
products of attention, bare functions and SiLU cost nothing. Subclasses do not count either, which leaves out the norms of
the U-Net's residual blocks (LDM's own class there) and the head's upsampling (mmseg's own class). timm's LayerNorm counts
nevertheless: it stands where Swin and ViT have torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

from diffusers.models.resnet import ResnetBlock2D
from timm.layers import LayerNorm
from torch import Tensor, nn


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, given: Tensor, result: Tensor) -> int:
    # A transposed convolution multiplies at every pixel of its input, a plain one at every pixel of its output.
    places = (given if isinstance(module, nn.ConvTranspose2d) else result)[:, 0].numel()
    biases = result.numel() if module.bias is not None else 0
    return module.weight.numel() * places + biases


def _linear(module: nn.Linear, given: Tensor, result: Tensor) -> int:
    return given.numel() * module.out_features


def _norm(module: nn.Module, given: Tensor, result: Tensor) -> int:
    return given.numel() * 2


def _activation(module: nn.Module, given: Tensor, result: Tensor) -> int:
    return result.numel()


def _pool(module: nn.Module, given: Tensor, result: Tensor) -> int:
    return given.numel()


RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], int]] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    nn.GroupNorm: _norm,
    nn.LayerNorm: _norm,
    LayerNorm: _norm,
    nn.ReLU: _activation,
    nn.AdaptiveAvgPool2d: _pool,
}


class MmcvCounter:
    """Counts by module while the block runs."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._counts, self._hooks = model, {}, []

    def __enter__(self) -> MmcvCounter:
        unseen = _residual_norms(self._model)
        for name, module in self._model.named_modules():
            if type(module) in RULES and module not in unseen:
                self._hooks.append(module.register_forward_hook(self._counting(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _counting(self, name: str) -> Callable[..., None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
            self._counts[name] = self._counts.get(name, 0) + RULES[type(module)](module, inputs[0], result)

        return count

    def total(self, part: str) -> int:
        """Multiply-adds inside the module ``part``."""
        return sum(count for name, count in self._counts.items() if name.startswith(f"{part}."))


def _residual_norms(model: nn.Module) -> set[nn.Module]:
    unet = getattr(model, "unet", nn.Identity())
    return {norm for block in unet.modules() if isinstance(block, ResnetBlock2D) for norm in (block.norm1, block.norm2)}
