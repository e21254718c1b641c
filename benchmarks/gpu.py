"""What one GPU does with VPD in a few minutes: speed, memory, precision and parity, with random weights and contents.

    benchmarks/gpu.sh [--minutes 9] [--out benchmarks/results]     # installs what is missing first
    python benchmarks/gpu.py --narrow                              # the same with narrow networks, on any machine

It writes a Markdown table and the same as JSON, row by row. What did not get its turn in the minutes says so. Training is
the project's own step (loss, backward pass, AdamW) at the full learning rate, and evaluation its own inference.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jobs import NO_MEMORY, NOT_RUN, Job, Row, Table, run
from trainer import DEFAULT, MODES, Trainer, network
from vpd.config.params import Params, load_params
from vpd.config.schema import Spec
from vpd.evaluation.inference import estimate_depth, refer, segment
from vpd.evaluation.run import predictor
from vpd.planning.cost import RESERVED, cost
from vpd.planning.costs import GIB
from vpd.pretrained.stable_diffusion import configs
from vpd.utils.devices import device_type, nvidia_smi
from vpd.utils.errors import UserError
from vpd.utils.fingerprint import git_commit

ROOT = Path(__file__).parents[1]
CUDA = torch.cuda.is_available()
EXPERIMENTS = {"segmentation": "seg-full", "referring": "refcoco-full", "depth": "depth-full"}
PROTOCOLS = {"segmentation": segment, "referring": refer, "depth": estimate_depth}
RECIPE = {"accumulate": 8, "precision": "bf16", "gradient_checkpointing": True}
"""Of docs/paper-scale.md, for a card of 24 GB."""
TRAINED = ("bf16", "tf32", "fp32")  # precisions, the most telling first
CARD = 24 * GIB - RESERVED
LATE = 15  # seconds that the last job may take beyond its share
COLUMNS = ("part", "case", "steps/s", "images/s", "peak GiB", "foreseen GiB", "MFU %", "result")
NARROW = {
    "unet": {"block_out_channels": [16, 16, 32, 32], "attention_head_dim": 4, "cross_attention_dim": 32},
    "vae": {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    },
}


@dataclass
class Bench:
    """What is measured, how often and how long."""

    params: Params
    parts: dict[str, dict[str, Any]]  # of the networks
    side: int  # of the matrices
    largest: int  # batch
    steps: int  # of a loss curve
    warmup: int  # repetitions that are not timed
    fewest: int  # repetitions that are
    most: int
    seconds: float  # for which to repeat
    images: int  # of an evaluation
    peaks: dict[str, float] = field(default_factory=dict)  # operations per second, by mode

    def spec(self, task: str, **training: Any) -> Spec:
        """Return the spec of a task's experiment with other training settings."""
        spec = self.params.resolve(EXPERIMENTS[task])
        return spec.model_copy(update={"training": spec.training.model_copy(update=training)})

    def foreseen(self, spec: Spec) -> Row:
        """Return the estimate of ``vpd cost`` for the memory of a step."""
        return {"foreseen GiB": cost(spec, self.parts).step_bytes() / GIB}

    def timed(self, work: Callable[[int], object], end: float) -> float:
        """Return the median seconds of ``work``, which gets the number of the repetition."""
        seconds: list[float] = []
        for number in range(self.warmup + self.most):
            start = time.perf_counter()
            work(number)
            if CUDA:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            enough = sum(seconds[self.warmup :]) >= self.seconds or time.monotonic() > end
            if enough and len(seconds) >= self.warmup + self.fewest:
                break
        return statistics.median(seconds[self.warmup :])


def true_bench() -> Bench:
    """Return the benchmark at Stable Diffusion 1's size; UserError without a GPU."""
    if device_type() != "cuda":
        raise UserError("PyTorch finds no GPU here; give --narrow to run the same with narrow networks on the cores")
    params = load_params(ROOT / "params.yaml", "paper")
    return Bench(params, configs(), 8192, largest=1024, steps=50, warmup=1, fewest=2, most=20, seconds=1.5, images=1000)


def narrow_bench() -> Bench:
    """Return the same with networks whose figures mean nothing, to see that it runs."""
    small, parts = {"layers_per_block": 1, "norm_num_groups": 8}, configs()
    parts |= {part: {**parts[part], **small, **changes} for part, changes in NARROW.items()}
    params = load_params(ROOT / "params.yaml", "smoke")
    return Bench(params, parts, 128, largest=1, steps=2, warmup=0, fewest=1, most=1, seconds=0.0, images=2)


def peak() -> Row:
    """Return the GPU's largest memory since the last call, if there is a GPU."""
    if not CUDA:
        return {}
    found = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return {"peak GiB": found}


def limit_memory(limit: float) -> None:
    """Let this process have no more than ``limit`` bytes of the GPU."""
    if CUDA:
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))


# ------------------------------------------------------------------------------------------------------------------- jobs
def multiply(bench: Bench, mode: str, end: float) -> Iterator[Row]:
    """Measure a square matrix product, the peak that MFU refers to."""
    MODES[mode].enter()
    kind = torch.bfloat16 if MODES[mode].precision == "bf16" else torch.float32
    a, b = (torch.randn(bench.side, bench.side, device=device_type(), dtype=kind) for _ in range(2))
    bench.peaks[mode] = 2 * bench.side**3 / bench.timed(lambda _: a @ b, end)
    speed = bench.peaks[mode] / 1e12
    yield {"case": f"{mode}, {bench.side} x {bench.side}", "TFLOP/s": speed, "result": f"{speed:.3g} TFLOP/s"}


def parity(task: str, end: float) -> Iterator[Row]:
    """Compare the forward pass with what the original code computed (tests/fixtures/parity)."""
    sys.path.append(str(ROOT / "tests"))
    from fixtures.parity.case import TASKS, Case, write_parity_checkpoint

    MODES["fp32"].enter()
    name = next(short for short, long in TASKS.items() if long == task)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        errors = list(Case(name, write_parity_checkpoint(Path(folder)), device=device_type()).forward_errors())
    what, worst, limit = max(errors, key=lambda found: found[1] / found[2])
    verdict = "within the limits" if worst < limit else "ABOVE THE LIMIT"
    figures = {what: error for what, error, _ in errors}
    yield {"case": task, "errors": figures, "result": f"{verdict}: {what} {worst:.1e} of {limit:.0e}"}


def evaluate(bench: Bench, task: str, multi_scale: bool, end: float) -> Iterator[Row]:
    """Measure the images per second of an evaluation, from images in memory to predictions."""
    MODES[DEFAULT].enter()
    spec = bench.spec(task)
    settings = spec.evaluation.model_copy(update={"multi_scale": multi_scale} if task == "segmentation" else {})
    infer = partial(PROTOCOLS[task], predictor(spec, network(spec, bench.parts).eval()), settings=settings)
    peak()
    with torch.inference_mode():
        list(infer(samples=[sample(spec, "warm-up")]))
        start = time.perf_counter()
        timely = itertools.takewhile(lambda number: number == 0 or time.monotonic() < end, range(bench.images))
        count = sum(1 for _ in infer(samples=(sample(spec, str(number)) for number in timely)))
        seconds = time.perf_counter() - start
    yield {"case": evaluation_name(task, multi_scale), "images/s": count / seconds, **peak()}


def evaluation_name(task: str, multi_scale: bool) -> str:
    """Return the name of an evaluation."""
    return f"{task}, all scales and mirror images" if multi_scale else task


def sample(spec: Spec, name: str) -> dict[str, Any]:
    """Make a sample of a validation split with random contents: as high as a window, and a third wider."""
    given = {"id": name, "image_id": name, "text": "", "class_id": torch.tensor(0)}
    if spec.task == "referring":
        return {"image": torch.rand(3, spec.evaluation.size, spec.evaluation.size) * 2 - 1, **given}
    side = spec.evaluation.window if spec.task == "depth" else spec.evaluation.short_side
    image = torch.rand(3, side, round(side * 4 / 3))
    return {"image": image * 2 - 1 if spec.task == "depth" else (image * 255).byte(), **given}


def recipe(bench: Bench, task: str, end: float) -> Iterator[Row]:
    """Make steps of the whole batch as on a card of 24 GB, with no more memory than that has."""
    images, parts = bench.spec(task).training.batch_size, RECIPE["accumulate"]
    images = max(images, parts)  # smoke's batches are smaller
    spec, verdict = bench.spec(task, **RECIPE, batch_size=images), f"in {CARD / GIB:.1f} GiB"
    row = {"case": f"{task}, {parts} x {images // parts}", **bench.foreseen(spec)}
    limit_memory(CARD)
    peak()
    try:
        trainer = Trainer(spec, bench.parts, MODES["bf16"])
        seconds = bench.timed(partial(trainer.step, trainer.batches(images // parts)), end)
        yield row | {"steps/s": 1 / seconds, "images/s": images / seconds, **peak(), "result": f"fits {verdict}"}
    except torch.OutOfMemoryError:
        yield row | {**peak(), "result": f"does not fit {verdict}"}
    finally:
        limit_memory(float("inf"))


def drift(bench: Bench, task: str, end: float) -> Iterator[Row]:
    """Compare features, and the losses of training from the same start, with those of fp32 without TF32."""
    modes = ("bf16", DEFAULT, "tf32")
    expected, curve = learn(bench, task, "fp32", until(end, 1 + len(modes)))
    result = f"loss {curve[0]:.4g}, {curve[-1]:.4g} in step {len(curve)}"
    yield {"case": f"{task}, fp32", "losses": curve, "result": result}
    for left, mode in zip(range(len(modes), 0, -1), modes, strict=True):
        case = {"case": f"{task}, {mode}"}
        if time.monotonic() > end:
            yield case | {"result": NOT_RUN}
            continue
        found, losses = learn(bench, task, mode, until(end, left))
        levels = [((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True)]
        off = max(abs(a - b) / abs(b) for a, b in zip(losses, curve, strict=False))
        result = f"features {', '.join(f'{x:.1e}' for x in levels)}; losses {off:.1e} in {min(len(losses), len(curve))} steps"
        yield case | {"levels": levels, "losses": losses, "result": result}


def until(end: float, sharers: int) -> float:
    """Return the end of the first of equal shares of the time that is left."""
    now = time.monotonic()
    return now + (end - now) / sharers


def learn(bench: Bench, task: str, mode: str, end: float) -> tuple[list[torch.Tensor], list[float]]:
    """Return the features before training, and the loss of each step that there was time for."""
    spec = bench.spec(task, precision=MODES[mode].precision, accumulate=1)
    trainer = Trainer(spec, bench.parts, MODES[mode])
    batches = trainer.batches(2, 4)
    features, losses = trainer.features(batches[0]), [trainer.step(batches, 0)]
    while len(losses) < bench.steps and time.monotonic() < end:
        losses.append(trainer.step(batches, len(losses)))
    return features, losses


def train(bench: Bench, task: str, mode: str, checkpointing: bool, end: float) -> Iterator[Row]:
    """Measure the training step with batches of 1, 2, 4, ... until memory or time ends."""
    spec = bench.spec(task, precision=MODES[mode].precision, gradient_checkpointing=checkpointing, accumulate=1)
    trainer = Trainer(spec, bench.parts, MODES[mode])
    # MFU does not count what checkpointing computes twice.
    macs = cost(bench.spec(task, gradient_checkpointing=False), bench.parts).training_macs
    seconds, images = 0.0, 1
    while images <= bench.largest:
        sized = spec.model_copy(update={"training": spec.training.model_copy(update={"batch_size": images})})
        row = {"case": f"{training_name(task, mode, checkpointing)}, batch {images}", **bench.foreseen(sized)}
        if seconds and time.monotonic() + 2 * seconds * (bench.warmup + bench.fewest) > end:
            yield row | {"result": NOT_RUN}
            return
        peak()
        try:
            seconds = bench.timed(partial(trainer.step, trainer.batches(images)), end)
        except torch.OutOfMemoryError:
            yield row | {"result": NO_MEMORY}
            return
        used = {"MFU %": 200 * macs * images / seconds / bench.peaks[mode]} if mode in bench.peaks else {}
        yield row | {"steps/s": 1 / seconds, "images/s": images / seconds, **peak(), **used}
        images *= 2


def training_name(task: str, mode: str, checkpointing: bool) -> str:
    """Return the name of a way to train."""
    return f"{task}, {mode}{', checkpointed' * checkpointing}"


# ------------------------------------------------------------------------------------------------------------------- plan
def plan(bench: Bench) -> dict[str, tuple[float, dict[str, Job]]]:
    """Return each part's share of the time and its jobs by name, the most telling first."""
    trained = [(task, mode, again) for again, mode, task in itertools.product((False, True), TRAINED, EXPERIMENTS)]
    evaluated = [*((task, False) for task in EXPERIMENTS), ("segmentation", True)]
    return {
        "matrix product": (1, {mode: partial(multiply, bench, mode) for mode in TRAINED}),
        "parity": (5, {task: partial(parity, task) for task in EXPERIMENTS}),
        "evaluation": (12, {evaluation_name(*each): partial(evaluate, bench, *each) for each in evaluated}),
        "24 GB recipe": (10, {task: partial(recipe, bench, task) for task in EXPERIMENTS}),
        "drift": (22, {task: partial(drift, bench, task) for task in EXPERIMENTS}),
        "training": (50, {training_name(*each): partial(train, bench, *each) for each in trained}),
    }


def about() -> dict[str, Any]:
    """Name the card, its driver and the software."""
    found = {"card": "no GPU", "torch": torch.__version__, "diffusers": version("diffusers")}
    if CUDA:
        found["card"] = torch.cuda.get_device_name()
        found |= {"driver": ", ".join(nvidia_smi("driver_version")), "cuDNN": torch.backends.cudnn.version()}
    return found | {"Python": platform.python_version(), "commit": git_commit(ROOT) or "unknown"}


def main() -> int:
    """Run all parts; 1 if any of them failed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=9.0, help="for everything (default 9)")
    options.add_argument("--spent", type=float, default=0.0, help="seconds of them that are gone")
    options.add_argument("--narrow", action="store_true", help="narrow networks, to see that it runs")
    options.add_argument("--parts", nargs="+", metavar="PART", help='run only these, such as drift or "24 GB recipe"')
    options.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of gpu.md and gpu.json")
    given = options.parse_args()
    # Imports count too, and take about as long as they compute.
    end = time.monotonic() + 60 * given.minutes - given.spent - time.process_time() - LATE
    warnings.filterwarnings("ignore")  # one for each operation that has no deterministic form on a GPU
    bench = narrow_bench() if given.narrow else true_bench()
    parts = plan(bench)
    if unknown := set(given.parts or ()) - parts.keys():
        raise UserError(f"--parts: there is no {', '.join(sorted(unknown))}; the parts are {', '.join(parts)}")
    table = Table(given.out / "gpu", COLUMNS, about())
    for row in run({part: parts[part] for part in given.parts or parts}, end):
        table.add(row)
    return int(table.failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
