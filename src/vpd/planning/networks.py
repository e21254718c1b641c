"""Networks and batches with random contents, on any device, and their parameters and multiply-adds.

They are counted on the meta device: shapes without contents, a second each. True multiply-adds are half of what torch's
counter gives: convolutions and all matrix products, those of attention included; norms, activations and biases not. The
paper's GFLOPs (Table 1) are multiply-adds as mmcv 1.7's ``get_model_complexity_info`` counts them, by type of module:
``RULES`` below. That counter sees modules only, so the matrix products of attention, bare functions and SiLU cost nothing.
Subclasses do not count either, which leaves out the norms of the U-Net's residual blocks (LDM's own class there) and the
head's upsampling (mmseg's own class). timm's LayerNorm counts nevertheless: it stands where Swin and ViT have torch's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BatchEncoding, BertConfig, BertModel

from vpd.config.schema import BackboneModel, BackboneSpec, DepthSpec, LavtModel, ReferringData, Spec, VPDModel
from vpd.models.backbones import build_backbone
from vpd.models.baseline import Baseline
from vpd.models.diffusion import JOINT, TRANSFORMER, network_class, projection_width, token_width
from vpd.models.lavt import Lavt
from vpd.models.network import VPD
from vpd.models.prompts import FROM_IMAGES
from vpd.pretrained.stable_diffusion import network_tensors
from vpd.utils.digests import digest

Configs = dict[str, dict[str, Any]]
"""Of ``unet`` or ``transformer``, ``vae`` and each ``text_encoder``, as their libraries write them."""
Parts = Configs | BackboneSpec  # what a network is made of: a Stable Diffusion checkpoint, or a backbone
CLASSES = {"ade20k": 150, "nyuv2": 27, "refcoco": 0}
"""Classes of the real datasets by format: objectInfo150 of the scene parsing benchmark, and NYUv2's scenes (D4)."""
PARTS = ("vae", "unet", "adapter", "backbone", "language", "fusion", "neck", "head")
FLOAT = 4  # bytes
FORMATS = {"segmentation": "ade20k", "depth": "nyuv2", "referring": "refcoco"}


class _GivenTokens(nn.Module):
    """Random token states in place of the frozen text encoder, which the paper's figures leave out."""

    def __init__(self, tokens: int, width: int, told: Tensor | None) -> None:
        super().__init__()
        self.tokens, self.projection_width = tokens, 0 if told is None else told.shape[1]
        self.register_buffer("states", torch.randn(1, tokens, width))
        self.register_buffer("told", told)

    def forward(self, sentences: list[str]) -> Tensor:
        return self.get_buffer("states").expand(len(sentences), -1, -1)

    def pooled(self, sentences: list[str]) -> Tensor:
        return self.forward(sentences)[:, -1]

    def projected(self, sentences: list[str]) -> Tensor | None:
        return None if self.told is None else self.get_buffer("told").expand(len(sentences), -1)


def _full_sentences(sentences: list[str], *, max_length: int, **_options: object) -> Any:
    """Stand in for BERT's tokenizer: every sentence has ``max_length`` equal tokens."""
    ids = torch.zeros(len(sentences), max_length, dtype=torch.long)
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def build(spec: Spec, parts: Parts, classes: int) -> nn.Module:
    """Build the network of an experiment with random weights on torch's default device (``meta`` included)."""
    return _build_vpd(spec, parts, classes) if isinstance(parts, dict) else _build_baseline(spec, parts, classes)


def _build_vpd(spec: Spec, configs: Configs, classes: int) -> nn.Module:
    config = configs[TRANSFORMER if TRANSFORMER in configs else "unet"]
    network: Any = network_class(config)
    unet, vae = network.from_config(config), AutoencoderKL.from_config(configs["vae"])
    assert isinstance(spec.model, VPDModel)
    prompt, width, projected = spec.model.prompt, token_width(config), projection_width(config)
    tokens = prompt.length * (2 if JOINT in config else 1)  # of a sentence
    prompts = classes if prompt.strategy in ("class-names", "scene") else 1
    told = torch.randn(prompts, projected) if projected else None
    if network is PixArtTransformer2DModel and prompt.strategy in ("expression", "empty-sequence"):
        told = torch.ones(1, tokens)  # a mask
    if prompt.strategy in FROM_IMAGES:
        return VPD(spec, unet, vae, classes, text=_GivenTokens(tokens, width, told))
    rows = tokens if prompt.strategy == "empty-sequence" else prompts
    return VPD(spec, unet, vae, classes, class_embeddings=torch.randn(rows, width), class_projections=told)


def _build_baseline(spec: Spec, parts: BackboneSpec, classes: int) -> nn.Module:
    model, checkpointing = spec.model, spec.training.gradient_checkpointing
    assert isinstance(model, BackboneModel | LavtModel)
    backbone = build_backbone(parts.vision, drop_path=model.drop_path, gradient_checkpointing=checkpointing)
    if isinstance(model, BackboneModel):
        return Baseline(spec, backbone, classes)
    assert parts.language is not None
    vocabulary = {} if parts.vocabulary is None else {"vocab_size": parts.vocabulary}
    bert = BertModel(BertConfig(**{**parts.language.options, **vocabulary}), add_pooling_layer=False)
    return Lavt(spec, backbone, bert, _full_sentences)


def crop(spec: Spec) -> int:
    """Side of the square training images in pixels."""
    return spec.data.size if isinstance(spec.data, ReferringData) else spec.data.crop


def make_batch(spec: Spec, images: int, classes: int) -> dict[str, Any]:
    """Make a training batch with random contents on torch's default device."""
    side = crop(spec)
    batch: dict[str, Any] = {"image": torch.rand(images, 3, side, side) * 2 - 1}
    if isinstance(spec, DepthSpec):
        depth = torch.rand(images, side, side) * (spec.data.max_depth - 0.1) + 0.1
        return batch | {"depth": depth, "class_id": torch.randint(0, classes, (images,))}
    values = 2 if isinstance(spec.data, ReferringData) else classes
    return batch | {"label": torch.randint(0, values, (images, side, side)), "text": [""] * images}


@dataclass(frozen=True)
class Part:
    """One part of a network; per training image and forward pass."""

    parameters: int
    trainable: int
    macs: int  # true multiply-adds
    mmcv_macs: int
    activations: int  # bytes of its trained layers' inputs and outputs: about what autograd keeps

    def __add__(self, other: Part) -> Part:
        return Part(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


_counted: dict[str, dict[str, Part]] = {}


def count(spec: Spec, parts: Parts, classes: int) -> dict[str, Part]:
    """Count a network by part (``PARTS``), equal ones once; the arguments are those of ``networks.build``."""
    settings = spec.model_dump(mode="json", include={"task": True, "model": True, "data": True})
    made_of = parts if isinstance(parts, dict) else parts.model_dump(mode="json")
    key = digest([settings, spec.training.gradient_checkpointing, made_of, classes])
    if key not in _counted:
        _counted[key] = _count(spec, parts, classes)
    return _counted[key]


def _count(spec: Spec, parts: Parts, classes: int) -> dict[str, Part]:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = build(spec, parts, classes).eval()
        mmcv, activations = _by_module(model)
        with torch.no_grad(), counter:
            model(make_batch(spec, 1, classes))
    flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}

    def part(name: str) -> Part:
        macs = _within(flops, f"{type(model).__name__}.{name}") // 2
        module = model.get_submodule(name)
        sizes = _size(module), _size(module, trainable=True)
        return Part(*sizes, macs, _total(mmcv, name), FLOAT * _total(activations, name))

    counted = {name: part(name) for name, _ in model.named_children() if name in PARTS}
    if hasattr(model.head, "neck"):  # a head's own neck counts as neck
        neck, none = part("head.neck"), Part(0, 0, 0, 0, 0)
        counted["neck"] = counted.get("neck", none) + neck
        counted["head"] = Part(*(a - b for a, b in zip(astuple(counted["head"]), astuple(neck), strict=True)))
    return {name: counted[name] for name in PARTS if name in counted}


def text_parameters(spec: Spec, parts: Parts) -> int:
    """Count VPD's frozen text encoders where they stay in the network; elsewhere they have encoded the prompts before."""
    stay = isinstance(spec.model, VPDModel) and spec.model.prompt.strategy in FROM_IMAGES
    return encoder_parameters(spec, parts) if stay else 0


def encoder_parameters(spec: Spec, parts: Parts) -> int:
    """Count VPD's frozen text encoders, which every process loads."""
    if not isinstance(spec.model, VPDModel):
        return 0
    assert isinstance(parts, dict)
    texts = (network_tensors(part, config) for part, config in parts.items() if part.startswith("text_encoder"))
    return sum(tensor.numel() for tensors in texts for tensor in tensors.values())


def _size(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _within(flops: dict[str, int], name: str) -> int:
    """Operations of a module, or of its parts where others call those one by one (LAVT its backbone's stages)."""
    inside = {path for path in flops if f"{path}.".startswith(f"{name}.")}
    outermost = {path for path in inside if not any(path.startswith(f"{other}.") for other in inside)}
    return sum(flops[path] for path in outermost)


def _total(counts: Counter[str], part: str) -> int:
    return sum(count for name, count in counts.items() if name.startswith(f"{part}."))


def _convolution(module: Any, given: Tensor, result: Tensor) -> int:
    # A transposed convolution multiplies at every pixel of its input, a plain one at every pixel of its output.
    pixels = (given if isinstance(module, nn.ConvTranspose2d) else result)[:, 0].numel()
    biases = result.numel() if module.bias is not None else 0
    return module.weight.numel() * pixels + biases


RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.Linear: lambda module, given, result: given.numel() * result.shape[-1],  # without the biases
    **dict.fromkeys(
        (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, LayerNorm), lambda module, given, _: given.numel() * 2
    ),
    nn.ReLU: lambda module, given, result: result.numel(),
    nn.AdaptiveAvgPool2d: lambda module, given, result: given.numel(),
}


def _by_module(model: nn.Module) -> tuple[Counter[str], Counter[str]]:
    """Count from now on mmcv's multiply-adds and the numbers in and out of trained layers, by module."""
    macs: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    unet = getattr(model, "unet", nn.Identity())
    residual = [block for block in unet.modules() if isinstance(block, ResnetBlock2D)]
    unseen = {norm for block in residual for norm in (block.norm1, block.norm2)}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
            if type(module) in RULES and module not in unseen:
                macs[name] += RULES[type(module)](module, inputs[0], result)
            if inputs and any(p.requires_grad for p in module.parameters(recurse=False)):
                activations[name] += inputs[0].numel() + result.numel()

        return add

    for name, module in model.named_modules():
        if not any(module.children()):
            module.register_forward_hook(hook(name))
    return macs, activations
