"""Batches by position: step n sees the same samples whether a run was interrupted or not, with any worker count."""

import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader

from vpd.config.schema import TrainingSpec
from vpd.datasets.dataset import Dataset
from vpd.utils.errors import UserError

Position = tuple[int, int]  # (index in the dataset, epoch)
GRACE = 20  # seconds that a worker process goes on after SIGTERM; Slurm waits 30 before it kills


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of ``length`` samples drawn from (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(length)


@dataclass(frozen=True)
class Plan:
    """Which samples each step sees, and which of them this process takes; ``plan_batches`` makes checked ones."""

    length: int
    batch_size: int
    accumulate: int
    drop_last: bool
    seed: int
    rank: int = 0
    processes: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches that one pass over the dataset gives."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def batch(self, step: int) -> list[Position]:
        """The effective batch of a 0-based step, over all processes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.length, self.seed, epoch)
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return [(int(index), epoch) for index in chosen]

    def shares(self, step: int) -> list[list[Position]]:
        """The micro-batches of a step that this process computes; a short last batch has smaller ones."""
        batch = self.batch(step)
        side = -(-len(batch) // self.accumulate)
        micros = [batch[start : start + side] for start in range(0, len(batch), side)]
        # Neighbours, so that two processes compute the same parts as one that accumulates twice as many.
        return [micro[self._portion(len(micro))] for micro in micros]

    def _portion(self, samples: int) -> slice:
        side = -(-samples // self.processes)
        return slice(self.rank * side, (self.rank + 1) * side)

    def total_steps(self, training: TrainingSpec) -> int:
        """Steps of the whole training."""
        return training.steps or (training.epochs or 0) * self.steps_per_epoch


def plan_batches(training: TrainingSpec, length: int, seed: int, rank: int = 0, processes: int = 1) -> Plan:
    """Plan the batches of a training run; UserError where the batch does not fit the dataset or its division."""
    size, accumulate = training.batch_size, training.accumulate
    if length < size:
        raise UserError(
            f"training.batch_size is {size} but the dataset has {length} samples; "
            f"use a batch of at most {length} or a larger dataset"
        )
    if size % (accumulate * processes):
        raise UserError(
            f"training.batch_size {size} cannot be divided into accumulate {accumulate} x {processes} processes; "
            "make it a multiple of both"
        )
    rest = length % size
    if processes > 1 and not training.drop_last and rest % (accumulate * processes):
        raise UserError(
            f"the last batch of an epoch has {rest} samples, which accumulate {accumulate} x {processes} processes "
            "cannot share; set training.drop_last to true"
        )
    return Plan(length, size, accumulate, training.drop_last, seed, rank, processes)


def micro_batches(
    dataset: Dataset, plan: Plan, start: int, stop: int, workers: int = 0, pin: bool = False
) -> Generator[dict]:
    """Yield this process's micro-batches of steps ``start`` to ``stop``, in order."""
    loader = DataLoader(
        Samples(dataset.sample),
        batch_sampler=(share for step in range(start, stop) for share in plan.shares(step)),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_outlive_the_step,
        # A fork server would die of a signal to the process group, and its workers with it.
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # the loader draws a number: not from the global state
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate(samples: list[dict | UserError]) -> dict | UserError:
    """Stack tensors and list everything else; a sample that is an error stands for the whole batch."""
    read: list[dict] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        read.append(sample)
    columns = {name: [sample[name] for sample in read] for name in read[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values for name, values in columns.items()
    }


class Samples(torch.utils.data.Dataset):
    """What a function reads, such as a dataset's samples, as torch's loader wants it: by the function's arguments."""

    def __init__(self, read: Callable[..., dict]) -> None:
        self.read = read

    def __getitem__(self, arguments: tuple[int, ...]) -> dict | UserError:
        try:
            return self.read(*arguments)
        except UserError as error:
            return error  # raised in a worker, it would arrive wrapped in a page of traceback


def end_if_stuck(worker: int) -> None:
    """Let a worker die, which its parent sees, of a batch that it cannot send (shared memory is full); else all would wait."""
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_die)  # type: ignore[attr-defined]


def _die(error: Exception, batch: object) -> None:
    print(f"a loader process cannot send its batch: {error}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def _outlive_the_step(worker: int) -> None:
    """Let the training process finish its step after a signal that went to every process, then end without it."""
    end_if_stuck(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signal.alarm(GRACE))
