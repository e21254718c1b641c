"""What keeping the frozen encoder's latents saves, measured both ways in one run.

    python benchmarks/frozen_latents.py checkpoints/mini/sd-1-5

Rounds of forward passes alternate between images with keys (latents kept after the first pass) and images without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from vpd.config.params import load_params
from vpd.models import build_model

ROUNDS, BATCH = 9, 8


def seconds(model: torch.nn.Module, batch: dict) -> float:
    """Wall time of one forward pass."""
    start = time.perf_counter()
    model(batch)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Print the median of both ways and their ratio, round by round."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    spec = load_params("params.yaml").resolve("refcoco-full")
    model = build_model(spec, given.checkpoint, []).eval()
    size = spec.evaluation.size
    plain = {"image": torch.rand(BATCH, 3, size, size) * 2 - 1, "text": [f"the box {i}" for i in range(BATCH)]}
    keyed = {**plain, "key": [str(i) for i in range(BATCH)]}
    for batch in (plain, keyed):
        seconds(model, batch)
    pairs = [(seconds(model, plain), seconds(model, keyed)) for _ in range(ROUNDS)]
    encoded, kept = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(f"encoded each time {encoded * 1e3:.1f} ms, kept {kept * 1e3:.1f} ms for {BATCH} images of {size} pixels")
    print(f"ratio {statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}] over {ROUNDS} rounds")


if __name__ == "__main__":
    main()
