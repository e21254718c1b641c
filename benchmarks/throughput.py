"""Training throughput, memory and precision: single against mixed precision, with and without gradient checkpointing.

    python benchmarks/throughput.py [--experiments seg-full ...] [--batch 2] [--steps 10]

Random weights and contents, the product's training step. On a GPU it runs at real size. Anywhere else take a small model:

    python benchmarks/throughput.py --scale smoke --checkpoint checkpoints/smoke/sd-1-5 --steps 3

Drift is the largest relative difference of a step's loss from that of the first variant that fits: same
weights, same batches, same order.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from vpd.config.params import load_params
from vpd.config.schema import Spec
from vpd.planning.cost import cost
from vpd.planning.costs import GIB
from vpd.planning.networks import CLASSES, FORMATS, build, make_batch, read_parts
from vpd.pretrained.stable_diffusion import configs
from vpd.training.loader import Plan
from vpd.training.loop import gradient, start_accelerator
from vpd.training.optim import build_optimizer
from vpd.training.state import seed_all

VARIANTS = {
    "fp32": {"precision": "fp32", "gradient_checkpointing": False},
    "fp32, checkpointed": {"precision": "fp32", "gradient_checkpointing": True},
    "bf16": {"precision": "bf16", "gradient_checkpointing": False},
    "bf16, checkpointed": {"precision": "bf16", "gradient_checkpointing": True},
}
WARMUP = 2


def run(spec: Spec, parts: dict, batch_size: int, steps: int, threads: int) -> tuple[list[float], list[float], float]:
    """Seconds and loss of each step, and the largest memory in GiB (0 where there is no GPU)."""
    torch.set_num_threads(threads)
    seed_all(0)
    accelerator = start_accelerator(spec.training.precision)
    classes = CLASSES[FORMATS[spec.task]]
    model = build(spec, parts, classes).to(accelerator.device).train()
    optimizer = build_optimizer(model, spec.training.optimizer)
    parallel, optimizer = accelerator.prepare(model, optimizer)
    batches = [make_batch(spec, batch_size, classes) for _ in range(2)]
    plan = Plan(batch_size, batch_size, accumulate=1, drop_last=True, seed=0)
    seconds, losses = [], []
    for step in range(WARMUP + steps):
        seed_all(0, step)
        start = time.perf_counter()
        value = gradient(accelerator, parallel, repeat(batches[step % 2]), plan, step, spec.training.loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(value))  # waits for the device
        seconds.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() / GIB if accelerator.device.type == "cuda" else 0.0
    return seconds, losses, memory


def drift(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def rows(name: str, spec: Spec, parts: dict, given: argparse.Namespace) -> Iterator[str]:
    """One table row per variant of an experiment; one that does not fit the device says so."""
    reference: list[float] = []
    for label, changes in VARIANTS.items():
        settings = {**changes, "batch_size": given.batch, "accumulate": 1}
        spec = spec.model_copy(update={"training": spec.training.model_copy(update=settings)})
        foreseen = cost(spec, parts).step_bytes() / GIB
        job = (run, spec, parts, given.batch, given.steps, given.threads)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                seconds, losses, memory = pool.submit(*job).result()
            except torch.OutOfMemoryError:
                yield f"| {name} | {label} | out of memory | | {foreseen:.2f} | | |"
                continue
        reference = reference or losses
        rate = given.batch / statistics.median(seconds[WARMUP:])
        cells = f"{rate:.2f} | {memory:.2f} | {foreseen:.2f} | {drift(losses, reference):.1e} | {losses[-1]:.4f}"
        yield f"| {name} | {label} | {cells} |"


def main() -> None:
    """Print one line per experiment and variant."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--experiments", nargs="+", default=["seg-full", "refcoco-full", "depth-full"])
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--scale", default="paper")
    options.add_argument("--checkpoint", type=Path, help="folder whose configurations replace Stable Diffusion 1's")
    given = options.parse_args()
    params = load_params("params.yaml", given.scale)
    parts = read_parts(given.checkpoint) if given.checkpoint else configs()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, batch {given.batch}, {given.steps} steps after {WARMUP}\n")
    print("| experiment | variant | images/s | peak GiB | foreseen GiB | drift | last loss |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for name in given.experiments:
        for row in rows(name, params.resolve(name), parts, given):
            print(row, flush=True)


if __name__ == "__main__":
    main()
