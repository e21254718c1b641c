"""Optional live logging of a training run: in the background, bounded, and never in the way of the training."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.schema import Spec
from vpd.tracking.records import Point, history_points, spec_params
from vpd.tracking.store import connected, experiment_id
from vpd.tracking.sync import METRICS_PER_BATCH, as_metrics, log_params, runs_of
from vpd.tracking.tags import HASH, KEY, SPEC, git_commit, run_name, spec_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS_BETWEEN_REQUESTS = 1.0


class Live:
    """Observer ``(step, values)`` that sends what training logs to MLflow from a thread of its own.

    It never blocks and never raises for MLflow's sake: when the queue is full, or after MLflow failed once (which prints
    one line), values are dropped and counted in ``dropped``; ``sync`` adds all of them from the files later. Nothing is sent
    before the first value, so a training that was already finished leaves no run. A resumed training continues its
    run: points sent twice are stored once.
    """

    def __init__(self, uri: str, spec: Spec, seed: int, capacity: int = 1000) -> None:
        self.uri, self.spec, self.seed = uri, spec, seed
        self.dropped = 0
        self._counting = threading.Lock()
        self._unsent: list[Point] = []
        self._queue: queue.Queue[list[Point] | None] = queue.Queue(capacity)
        self._failed, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-live", daemon=True)
        self._thread.start()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of one step, or drop them."""
        points = history_points(step, values)
        if self._failed.is_set() or self._closing.is_set():
            return self._drop(points)
        try:
            if points:
                self._queue.put_nowait(points)
        except queue.Full:
            self._drop(points)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self, seconds: float = 10.0) -> None:
        """Give the thread ``seconds`` to send what is queued, then leave it."""
        self._closing.set()
        while self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
                break
            except queue.Full:  # values make room for the end
                self._drop_queued(1)
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._drop_queued(self._queue.qsize())

    def _drop(self, points: list[Point] | None) -> None:
        with self._counting:
            self.dropped += len(points or ())

    def _drop_queued(self, items: int) -> None:
        with contextlib.suppress(queue.Empty):
            for _ in range(items):
                self._drop(self._queue.get_nowait())

    # ------------------------------------------------------------------------------------------------------- the thread
    def _work(self) -> None:
        try:
            if self._take():
                with connected(self.uri) as client:
                    self._send(client)
        except Exception as error:  # whatever MLflow does, the training goes on
            self._failed.set()
            reason = (str(error).partition(";")[0].splitlines() or [""])[0]
            text = f"live logging of {run_name(self.spec.name, self.seed)} stopped: {reason or type(error).__name__}"
            print(f"{text}; run 'vpd track' after the training", file=sys.stderr, flush=True)
            self._drop(self._unsent)
            self._drop_queued(self._queue.qsize())

    def _send(self, client: MlflowClient) -> None:
        run = self._open(client)
        while self._unsent:
            client.log_batch(run, metrics=as_metrics(self._unsent))
            self._closing.wait(SECONDS_BETWEEN_REQUESTS)
            self._take()
        client.set_terminated(run)

    def _take(self) -> list[Point]:
        """Wait for values and make all that are there, up to one request's worth, the unsent ones; none at the end."""
        self._unsent = []
        item = self._queue.get()
        while item is not None:
            self._unsent += item
            if len(self._unsent) >= METRICS_PER_BATCH:
                return self._unsent
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return self._unsent
        if self._unsent:
            self._queue.put(None)  # these are sent first; the next call finds the end again
        return self._unsent

    def _open(self, client: MlflowClient) -> str:
        """Continue the live run of the same key and spec, or start one in place of any other live run of the key."""
        tags = spec_tags(self.spec, self.seed)
        experiment = experiment_id(client, self.uri, self.spec.scale)
        same, others = _live_runs(client, experiment, tags)
        for run in others:
            client.delete_run(run)
        if not same:
            shown = {**tags, "git_commit": git_commit(Path())}
            run = client.create_run(experiment, run_name=run_name(self.spec.name, self.seed), tags=shown).info.run_id
            log_params(client, run, spec_params(self.spec))
            same, _ = _live_runs(client, experiment, tags)
            if run != same[0]:  # the same training began elsewhere at this moment
                client.delete_run(run)
        client.update_run(same[0], status="RUNNING")
        return same[0]


def _live_runs(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Live runs of the key, the oldest first: those of the same spec, and others; synchronised runs are left out."""
    found = [run for run in runs_of(client, experiment, tags[KEY]) if HASH not in run.data.tags]
    found.sort(key=lambda run: (run.info.start_time, run.info.run_id))
    same = [run.info.run_id for run in found if run.data.tags.get(SPEC) == tags[SPEC]]
    return same, [run.info.run_id for run in found if run.info.run_id not in same]
