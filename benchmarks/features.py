"""Features of one image at Stable Diffusion's real size, random weights: time and memory by how many levels of maps are recorded.

    python benchmarks/features.py [--size 512] [--threads 2] [--dtype float32 bfloat16]

Each run has a process of its own, whose largest memory so far is given after building, after features alone, and after a
backward pass to the image.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from true_size import peak
from vpd.models.extractor import FeatureExtractor
from vpd.pretrained.stable_diffusion import configs
from vpd.pretraining.clip import special_tokens, train_tokenizer

TEXT = "a photo of a red ball in a kitchen"
LEVELS = {
    "none": {"places": ()},
    "one": {"places": ("up",), "limit": 0.25},
    "A32": {},
    "all": {"places": ("down", "mid", "up"), "limit": 1.0},
}


def pipeline() -> SimpleNamespace:
    """Build the parts of Stable Diffusion 1.x with random weights, and a tokenizer that knows one sentence."""
    parts = configs()
    tokenizer = train_tokenizer([TEXT] * 9, 600, 77)
    text = CLIPTextModel(CLIPTextConfig(**parts["text_encoder"] | special_tokens(tokenizer)))
    networks = {"unet": UNet2DConditionModel.from_config(parts["unet"]), "vae": AutoencoderKL.from_config(parts["vae"])}
    return SimpleNamespace(**networks, text_encoder=text, tokenizer=tokenizer)


def run(levels: str, size: int, threads: int, dtype: str) -> tuple[list[float], list[float]]:
    """Return processor seconds of features alone, and with a backward pass, and peak GiB after each of three phases."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    extractor = FeatureExtractor(pipeline(), **LEVELS[levels]).to(dtype=getattr(torch, dtype)).eval()
    peaks, seconds = [peak()], []
    image = torch.rand(1, 3, size, size)
    for gradient in (False, True):
        start = time.process_time()
        with torch.set_grad_enabled(gradient):
            found = extractor(image.requires_grad_(gradient), TEXT)
            if gradient:
                sum(level.float().square().mean() for level in found.maps).backward()
        seconds.append(time.process_time() - start)
        peaks.append(peak())
    return seconds, peaks


def main() -> None:
    """Print one line per number of levels and precision."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    given = options.parse_args()
    heads = ("maps", "precision", "features s", "with backward s", "built GiB", "features GiB", "backward GiB")
    print(("{:<6}" + 6 * "{:>17}").format(*heads))
    for dtype in given.dtype:
        for levels in LEVELS:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                seconds, peaks = pool.submit(run, levels, given.size, given.threads, dtype).result()
            figures = [f"{number:.2f}" for number in (*seconds, *peaks)]
            print(("{:<6}" + 6 * "{:>17}").format(levels, dtype, *figures), flush=True)


if __name__ == "__main__":
    main()
