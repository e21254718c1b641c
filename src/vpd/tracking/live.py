"""Optional live logging: a running training shows its metrics in MLflow, and never fails because of MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vpd.config.schema import Spec
from vpd.tracking.records import HASH, KEY, SPEC, UNKNOWN, Point, flatten, history_points, run_name, spec_tags
from vpd.tracking.store import connected, environment, experiment_id
from vpd.tracking.sync import log_points_and_params, tracked_runs
from vpd.utils.fingerprint import git_commit

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAUSE = 5.0  # seconds between two requests, at least
SHARE = 0.02  # part of the training's time that requests may take
# What a silent server may cost, once: a probe and one request.
BOUNDS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


class Live:
    """Observer ``(step, values)`` that sends what a training logs to MLflow, now and then; use as a context manager.

    The first request that fails ends live logging with one line: a dead server costs the training a few seconds in all, and
    ``sync`` logs the complete run later. Nothing is sent before the first value, so a training that was already finished
    leaves no run. A resumed training continues its run.
    """

    def __init__(self, uri: str, spec: Spec, seed: int) -> None:
        self.uri, self.spec, self.seed = uri, spec, seed
        self.name, self.run = run_name(spec.name, seed), ""
        self.unsent: list[Point] = []
        self.due, self.failed = 0.0, False

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: object) -> None:
        if self.unsent or self.run:
            self._send(last=True)

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one step, and send all that wait if it is time."""
        self.unsent += history_points(step, values)
        if self.unsent and time.monotonic() >= self.due:
            self._send()

    def _send(self, last: bool = False) -> None:
        if self.failed:
            return
        started = time.monotonic()
        try:
            with environment(BOUNDS), connected(self.uri) as client:
                self.run = self.run or self._open(client)
                log_points_and_params(client, self.run, self.unsent, {})
                if last:
                    client.set_terminated(self.run)
        except Exception as error:  # whatever MLflow does, the training goes on
            self.failed = True
            reason = (str(error).partition(";")[0].splitlines() or [""])[0] or type(error).__name__
            text = f"live logging of {self.name} stopped: {reason}; run 'vpd track' after the training"
            print(text, file=sys.stderr, flush=True)
        self.unsent.clear()
        now = time.monotonic()
        self.due = now + max(PAUSE, (now - started) / SHARE)

    def _open(self, client: MlflowClient) -> str:
        """Continue the live run of the same key and spec, or replace any other live run of the key."""
        tags = spec_tags(self.spec, self.seed)
        experiment = experiment_id(client, self.uri, self.spec.scale)
        same = ""
        for run in tracked_runs(client, experiment, f"tags.`{KEY}` = '{tags[KEY]}'"):
            if HASH in run.data.tags:  # a complete run, which ``sync`` replaces
                continue
            if run.data.tags.get(SPEC) == tags[SPEC] and not same:
                same = run.info.run_id
            else:
                client.delete_run(run.info.run_id)
        if not same:
            tags["git_commit"] = git_commit() or UNKNOWN
            same = client.create_run(experiment, run_name=self.name, tags=tags).info.run_id
            log_points_and_params(client, same, [], flatten(self.spec.model_dump(mode="json")))
        client.update_run(same, status="RUNNING")
        return same
