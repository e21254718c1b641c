"""The training loop: CPU, one GPU or several processes (torchrun), resumable after every kind of death."""

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import send_to_device
from torch import nn

from vpd.config.schema import LossSpec, Spec
from vpd.datasets.dataset import Dataset
from vpd.models.base import Network
from vpd.training import Observer
from vpd.training.batch_norm import SYNCHRONISED, synchronise
from vpd.training.loader import Plan, micro_batches, plan_batches
from vpd.training.losses import loss
from vpd.training.optim import build_optimizer, factor, pretrained_multiplier, set_rates
from vpd.training.runs import publish
from vpd.training.state import Journal, keep_weights, load_state, save_state, seed_all, state_folder, weights_path
from vpd.utils.devices import device_type
from vpd.utils.errors import UserError
from vpd.utils.files import locked
from vpd.utils.fingerprint import Fingerprint, git_commit
from vpd.utils.progress import Progress


def fit(
    model: Network,
    dataset: Dataset,
    spec: Spec,
    seed: int,
    out: Path,
    state: Path,
    made_from: Fingerprint,
    observers: Sequence[Observer] = (),
) -> None:
    """Train a network, given on the CPU with its initial weights, and publish its weights and history into ``out``.

    UserError if the loss is not finite, before the step that would spoil the weights; SystemExit or KeyboardInterrupt after
    a signal, once the state is saved.
    """
    training, run = spec.training, f"{spec.name} seed {seed}"
    accelerator = start_accelerator(training.precision)
    lead = accelerator.is_main_process
    plan = plan_batches(training, len(dataset), seed, accelerator.process_index, accelerator.num_processes)
    total = plan.total_steps(training)
    milestones = milestone_steps(training.milestones, total)
    with contextlib.ExitStack() as stack:
        if lead:
            stack.enter_context(locked(state))
        folder = state_folder(state, made_from)
        if (
            accelerator.num_processes > 1 and spec.task in SYNCHRONISED
        ):  # batch norms see the samples of all processes (G6)
            model = synchronise(model, accelerator.device)
        model = model.to(accelerator.device).train()
        optimizer = build_optimizer(model, training.optimizer)
        journal = load_state(folder, model, optimizer)
        parallel, optimizer = accelerator.prepare(model, optimizer)
        pin = accelerator.device.type == "cuda"
        batches = stack.enter_context(
            contextlib.closing(micro_batches(dataset, plan, journal.step, total, training.workers, pin))
        )
        signals = stack.enter_context(deferred_signals())
        progress = stack.enter_context(Progress(total, run, unit="step", done=journal.step, enabled=lead))
        journal.started = journal.started or time.time()
        begun = time.monotonic() - journal.seconds

        for step in range(journal.step, total):
            # Nothing random depends on what came before, so a resumed run needs no saved generators.
            seed_all(seed, step, accelerator.process_index)
            set_rates(optimizer, rate := factor(step, total, training.schedule))
            own_loss = gradient(accelerator, parallel, batches, plan, step, training.loss)
            value, interrupted = agree(accelerator, own_loss, bool(signals))
            if not math.isfinite(value):
                raise UserError(
                    f"{run}: the loss of step {step + 1} is {value}; lower training.optimizer.lr "
                    f"(now {training.optimizer.lr:g}) or look for damaged samples in dataset {spec.dataset}"
                )
            optimizer.step()
            optimizer.zero_grad()

            journal.step, journal.seconds = step + 1, time.monotonic() - begun
            journal.losses.append(value)
            if journal.step % training.log_every == 0 or journal.step == total:
                lr = training.optimizer.lr * rate
                row = log_row(journal, plan, lr, lr * pretrained_multiplier(optimizer))
                if lead:
                    for observer in observers:
                        observer(journal.step, {name: row[name] for name in row if name != "step"})
            if lead:
                for name, last in milestones.items():
                    if journal.step == last:
                        journal.weights[name] = keep_weights(folder, name, model, seed, last)
                if interrupted or (journal.step % training.save_every == 0 and journal.step < total):
                    save_state(folder, journal, model, optimizer)
                progress.advance(note=f"loss {value:.4f}")
            if interrupted:
                accelerator.wait_for_everyone()
                leave(signals, run, journal.step)

        if lead:
            about = {"started": journal.started, "ended": time.time(), "seconds": round(journal.seconds, 2)}
            weights = {name: weights_path(folder, name) for name in milestones}
            publish(out, weights, milestones, journal.rows, made_from, {**about, "commit": git_commit()})
            shutil.rmtree(state, ignore_errors=True)
        accelerator.wait_for_everyone()


def start_accelerator(precision: str) -> Accelerator:
    """Accelerator of this process; algorithms are deterministic, on a GPU as far as it has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    # Parameters may stay without a gradient, such as the query of a cross-attention over one token.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    mixed = {"fp32": "no", "bf16": "bf16"}[precision]
    # Only when told does accelerate join the processes of a torchrun without GPUs; else each would train alone.
    cpu = not torch.accelerator.is_available() and device_type() == "cpu"
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[unused])
    torch.use_deterministic_algorithms(True, warn_only=accelerator.device.type != "cpu")
    # New tensors are not filled first: that makes only programs deterministic that read what they never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return accelerator


def milestone_steps(shares: dict[str, float], total: int) -> dict[str, int]:
    """Steps after which weights are kept, from shares of ``total``."""
    return {name: max(1, round(share * total)) for name, share in shares.items()}


def gradient(
    accelerator: Accelerator, model: nn.Module, batches: Iterator[dict], plan: Plan, step: int, spec: LossSpec
) -> torch.Tensor:
    """Accumulate the gradient of one effective batch over its micro-batches and return its loss, a detached scalar."""
    shares, size = plan.shares(step), len(plan.batch(step))
    total = torch.zeros((), device=accelerator.device)
    for number, share in enumerate(shares, start=1):
        batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
        with contextlib.nullcontext() if number == len(shares) else accelerator.no_sync(model):
            # Processes average their gradients, hence the factor that makes this the mean over the effective batch.
            value = loss(spec, model(batch), batch) * (len(share) * plan.processes / size)
            accelerator.backward(value)
        total += value.detach()
    return total


def agree(accelerator: Accelerator, value: torch.Tensor, signalled: bool) -> tuple[float, bool]:
    """Mean loss over the processes, and whether any of them was asked to stop."""
    together = torch.stack([value.float(), torch.full_like(value, float(signalled))])
    mean, stop = (accelerator.reduce(together, "sum") / accelerator.num_processes).tolist()
    return mean, stop > 0


def log_row(journal: Journal, plan: Plan, lr: float, lr_unet: float) -> dict[str, float]:
    """Append to the history: the mean loss since the last row, and the rates of the step just made."""
    mean = math.fsum(journal.losses) / len(journal.losses)
    epoch = journal.step / plan.steps_per_epoch
    row = {"step": journal.step, "epoch": epoch, "loss": mean, "lr": lr, "lr_unet": lr_unet}
    journal.rows.append(row)
    journal.losses.clear()
    return row


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1, so that a step ends before the process does; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}
    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


def leave(signals: list[int], run: str, step: int) -> None:
    """End the process as the signal asks, after the state has been saved."""
    print(f"{run}: stopped after step {step}; the next run continues from there", file=sys.stderr, flush=True)
    if signals and signals[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + (signals[0] if signals else signal.SIGTERM))
