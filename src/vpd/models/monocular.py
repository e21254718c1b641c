"""Public monocular depth models (ZoeDepth, DPT-Hybrid) with their authors' own protocol on NYUv2."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DPTForDepthEstimation
from transformers.modeling_outputs import DepthEstimatorOutput

SMALLEST_INVERSE = 1e-8  # of DPT, in 1 / metres


@dataclass(frozen=True)
class Protocol:
    """Pre- and post-processing with which a model's authors score it on NYUv2."""

    size: tuple[int, int]  # height and width that images are resized to ...
    keep_ratio: bool  # ... or, with the ratio of their sides kept, the nearer of the two
    mode: str  # interpolation of images to the network's size and of depth back to theirs ...
    corners: bool  # ... and whether the centres of the corner pixels stay corners
    flip: bool  # whether the scored depth is the mean over the image and its mirror image
    inverse: tuple[float, float] | None = None  # scale and shift that make 1 / metres of the output; None: it is metres


PROTOCOLS = {
    # isl-org/ZoeDepth, evaluate.py. Its other entry, infer_pil, pads the image, and transformers' processor does so too:
    # with padding the RMSE on NYUv2 is 0.375, not 0.270 (its issue 111).
    "zoedepth": Protocol((384, 512), keep_ratio=False, mode="bilinear", corners=True, flip=True),
    # isl-org/DPT, run_monodepth.py --model_type dpt_hybrid_nyu --absolute_depth.
    "dpt-hybrid": Protocol((480, 640), True, mode="bicubic", corners=False, flip=False, inverse=(0.000305, 0.1378)),
}
MULTIPLE = 32  # pixels; both networks need sides that are a multiple of it


class DPTHybrid(DPTForDepthEstimation):
    """transformers' DPT-Hybrid for images of any ratio of sides; its own forward takes squares of one size only."""

    def forward(self, pixel_values: Tensor) -> DepthEstimatorOutput:
        """Map images (batch, 3, H, W) in [-1, 1], sides a multiple of 32, to relative inverse depth (batch, H, W)."""
        height, width = pixel_values.shape[-2:]
        self.dpt.embeddings.image_size = (height, width)
        outputs = self.dpt(pixel_values, output_hidden_states=True)
        config: Any = self.config
        blocks = [outputs.hidden_states[1 + index] for index in config.backbone_out_indices[2:]]
        levels = [*outputs.intermediate_activations, *blocks]
        side = config.patch_size
        return DepthEstimatorOutput(predicted_depth=self.head(self.neck(levels, height // side, width // side)))


class Monocular(nn.Module):
    """A depth network of transformers with its authors' protocol around it."""

    def __init__(self, network: nn.Module, protocol: Protocol) -> None:
        super().__init__()
        self.network, self.protocol = network, protocol

    def forward(self, batch: dict) -> Tensor:
        """Map ``batch["image"]`` (batch, 3, H, W) in [-1, 1], of any size, to metres (batch, 1, H, W), without mirroring."""
        # Both models were trained on images normalised to [-1, 1], so nothing but the size changes.
        images = batch["image"]
        output = self.network(self._resized(images, *self.input_size(*images.shape[-2:]))).predicted_depth[:, None]
        if self.protocol.inverse:
            scale, shift = self.protocol.inverse
            output = 1.0 / (scale * output + shift).clamp_min(SMALLEST_INVERSE)
        return self._resized(output, *images.shape[-2:])

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width at which an image of the given size enters the network."""
        tall, wide = (own / given for own, given in zip(self.protocol.size, (height, width), strict=True))
        if self.protocol.keep_ratio:
            tall = wide = wide if abs(1 - wide) < abs(1 - tall) else tall
        return _multiple(tall * height), _multiple(wide * width)

    def _resized(self, maps: Tensor, height: int, width: int) -> Tensor:
        if maps.shape[-2:] == (height, width):
            return maps
        return F.interpolate(maps, (height, width), mode=self.protocol.mode, align_corners=self.protocol.corners)

    def estimate(self, image: Tensor) -> Tensor:
        """Estimate metres (H, W) of one image (3, H, W), averaged over its mirror image where the protocol says so."""
        depth = self({"image": image[None]})
        if self.protocol.flip:
            depth = (depth + self({"image": image[None].flip(-1)}).flip(-1)) / 2
        return depth[0, 0]


def _multiple(side: float) -> int:
    return max(round(side / MULTIPLE), 1) * MULTIPLE
