"""One training step of each task at Stable Diffusion's real size, random weights, 512 pixels, batch 1, on a CPU.

    python benchmarks/true_size.py [--tasks seg refer depth] [--checkpointing both] [--threads 2]

Each run has a process of its own: a forward pass as in evaluation, then a training step through the product's model, loss
and optimizer. Memory is the process's largest so far. The low-memory recipe is gradient checkpointing with one image per
micro-batch (training.gradient_checkpointing, training.accumulate).
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from vpd.config.params import load_params
from vpd.config.schema import Spec
from vpd.planning.costs import GIB
from vpd.planning.networks import CLASSES, FORMATS, build, make_batch, read_parts
from vpd.pretrained.stable_diffusion import configs
from vpd.training.losses import loss
from vpd.training.optim import build_optimizer
from vpd.utils.processes import return_freed_memory

TASKS = {"seg": "seg-full", "refer": "refcoco-full", "depth": "depth-full"}
PHASES = ("build", "evaluation", "encoder", "U-Net", "head", "loss", "backward", "AdamW")
ORIGINAL = (
    ("original seg, measured on a 2-core CPU: forward", {"encoder": 13.0, "U-Net": 19.5, "head": 0.6}, 5.70),
    (
        "original seg, measured on a 2-core CPU: forward and backward",
        {"encoder": 12.3, "U-Net": 23.4, "head": 0.5, "backward": 61.5},
        9.90,
    ),
)
"""The authors' code: seconds, and peak GiB of which 4.23 after building; no optimizer step (AdamW adds 6.5 GiB)."""


class Clock:
    """By phase: seconds on the wall and of the processor, and the largest memory of the process after it."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self.peaks: dict[str, float] = {}
        self._started: dict[str, tuple[float, float]] = {}

    @contextmanager
    def phase(self, name: str):
        """Measure a block."""
        self.start(name)
        yield
        self.stop(name)

    def watch(self, module: torch.nn.Module, name: str) -> None:
        """Measure the forward passes of a module; the last one stays."""
        module.register_forward_pre_hook(lambda *_: self.start(name))
        module.register_forward_hook(lambda *_: self.stop(name))

    def start(self, name: str) -> None:
        """Begin a phase."""
        self._started[name] = (time.perf_counter(), time.process_time())

    def stop(self, name: str) -> None:
        """End a phase."""
        wall, processor = self._started.pop(name)
        self.seconds[name] = (time.perf_counter() - wall, time.process_time() - processor)
        self.peaks[name] = peak()


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / GIB


def step(spec: Spec, parts: dict[str, dict], threads: int) -> tuple[dict, dict[str, float], float]:
    """Seconds (wall, processor) and peak GiB by phase, and the loss, of one evaluation pass and one training step."""
    torch.set_num_threads(threads)
    return_freed_memory()
    torch.manual_seed(0)
    classes, clock = CLASSES[FORMATS[spec.task]], Clock()
    with clock.phase("build"):
        model = build(spec, parts, classes)
    batch = make_batch(spec, 1, classes)
    with clock.phase("evaluation"), torch.inference_mode():
        model.eval()(batch)
    model.train()
    for module, name in ((model.vae, "encoder"), (model.unet, "U-Net"), (model.head, "head")):
        clock.watch(module, name)
    with clock.phase("forward"):
        prediction = model(batch)
    with clock.phase("loss"):
        value = loss(spec.training.loss, prediction, batch)
    with clock.phase("backward"):
        value.backward()
    optimizer = build_optimizer(model, spec.training.optimizer)
    with clock.phase("AdamW"):
        optimizer.step()
    return clock.seconds, clock.peaks, float(value.detach())


def variants(options: argparse.Namespace) -> dict[str, Spec]:
    """The specs to run, by label."""
    params, found = load_params("params.yaml", options.scale), {}
    for task in options.tasks:
        spec = params.resolve(TASKS[task])
        for on in {"off": (False,), "on": (True,), "both": (False, True)}[options.checkpointing]:
            training = spec.training.model_copy(update={"gradient_checkpointing": on})
            label = f"this project, {task}{', gradient checkpointing' if on else ''}"
            found[label] = spec.model_copy(update={"training": training})
    return found


def main() -> None:
    """Print one line per run as it ends, and the original's at the end; processor seconds stand in brackets."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options.add_argument("--checkpointing", choices=("off", "on", "both"), default="both")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--scale", default="paper")
    options.add_argument("--checkpoint", type=Path, help="folder whose configurations replace Stable Diffusion 1's")
    given = options.parse_args()
    parts = read_parts(given.checkpoint) if given.checkpoint else configs()
    peaks = ("GiB, evaluation", "GiB, forward", "GiB, backward", "GiB, AdamW")
    print(f"| run | {' | '.join(f'{name}, s' for name in PHASES)} | {' | '.join(peaks)} | loss |")
    print("| --- |" + " ---: |" * (len(PHASES) + len(peaks) + 1))
    for label, spec in variants(given).items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, memory, value = pool.submit(step, spec, parts, given.threads).result()
        shown = ["{:.1f} ({:.0f})".format(*seconds[name]) for name in PHASES]
        shown += [f"{memory[name]:.2f}" for name in ("evaluation", "forward", "backward", "AdamW")]
        print(f"| {label} | {' | '.join(shown)} | {value:.4f} |", flush=True)
    for label, seconds, memory in ORIGINAL:
        shown = [str(seconds.get(name, "")) for name in PHASES]
        shown += ["", "", str(memory), "", ""] if "backward" in seconds else [str(memory), "", "", "", ""]
        print(f"| {label} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
