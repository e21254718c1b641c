"""Synthetic results of Table 5 (seven experiments, three seeds) and a real MLflow server, for the tracking tests."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from vpd.config.params import Params, load_params
from vpd.training.runs import run_settings
from vpd.utils.digests import digest
from vpd.utils.files import write_json
from vpd.utils.fingerprint import Fingerprint, write_manifest

SEEDS = (0, 1, 2)
STEPS = range(5, 161, 5)
DEPTH = "depth-full"


def table5(experiments: int = 7, depth: bool = False) -> Params:
    """The project's own parameters, cut down to (the first) experiments of Table 5 and, with ``depth``, a model to register."""
    params = load_params(Path(__file__).parents[1] / "params.yaml", scale="mini", protocol="official")
    table = params.tables["table5"]
    names = [row.experiment for row in table.rows][:experiments] + [DEPTH] * depth
    cut = {"tables": {"table5": table}, "figures": {}, "registered": {"depth": DEPTH} if depth else {}}
    cut["experiments"] = {name: params.experiments[name] for name in names}
    return Params(params.document.model_copy(update=cut), params.source)


def miou(params: Params, experiment: str, seed: int, milestone: str) -> float:
    """The invented mIoU, different for every run and milestone."""
    return round(30 + 1.12 * list(params.experiments).index(experiment) + 0.25 * seed - 5 * (milestone == "half"), 6)


def write_results(folder: Path, params: Params) -> Path:
    """Files as the training, evaluation and report stages leave them."""
    for name in params.experiments:
        if name != DEPTH:
            _write_experiment(folder, params, name)
    (folder / "REPORT.md").write_text("# The paper in miniature\n")
    (folder / "figures").mkdir()
    (folder / "figures" / "figure3.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>\n")
    (folder / "tables").mkdir()
    with open(folder / "tables" / "cells.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "row", "column", "value", "sd", "provenance"])
        writer.writerow(["table5", "+ mid attention", "miou_8k", 33.25, "", "measured"])
        writer.writerow(["table5", "another", "miou_8k", "", "", "quoted"])
    return folder


def _write_experiment(folder: Path, params: Params, name: str) -> None:
    spec = params.resolve(name)
    for kind in ("specs", "metrics", "history", f"panels/{name}"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "specs" / f"{name}.json").write_text(spec.model_dump_json(indent=1))
    rows = [
        {"seed": seed, "milestone": half, "step": step, "metrics": {"miou_ss": miou(params, name, seed, half)}}
        for seed in SEEDS
        for half, step in (("half", 80), ("final", 160))
    ]
    runs = {f"seed{seed}": {"fingerprint": {"inputs": {"data": "d1", "checkpoint": "c1"}}} for seed in SEEDS}
    write_json(folder / "metrics" / f"{name}.json", {"spec": spec.digest(), "results": rows, "runs": runs})
    with open(folder / "history" / f"{name}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "step", "epoch", "loss", "lr", "lr_unet"])
        writer.writerows([seed, step, step // 50, 3 / step + seed, 1e-3, 1e-4] for seed in SEEDS for step in STEPS)
    Image.new("RGB", (48, 32), (200, 80, 40)).save(folder / "panels" / name / "predictions.png")


def write_depth(root: Path, params: Params) -> dict[str, Path]:
    """Add a trained depth network, its dataset and checkpoint; return the folders, as arguments of ``sync``."""
    name, results = DEPTH, root / "results"
    spec = params.resolve(name)
    (results / "specs" / f"{name}.json").write_text(spec.model_dump_json())
    rows = [{"seed": spec.seeds[0], "milestone": "final", "step": 160, "metrics": {"rmse": 0.75}}]
    write_json(results / "metrics" / f"{name}.json", {"spec": spec.digest(), "results": rows})
    weights = results / "runs" / name / f"seed{spec.seeds[0]}" / "final.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    made_from = Fingerprint(digest(run_settings(spec, spec.seeds[0])), "")
    write_manifest(weights.parent, made_from, {}, {weights.name: "w" * 64})
    for kind, thing in (("data", spec.dataset), ("checkpoints", spec.checkpoint)):
        write_json(root / kind / thing / "manifest.json", {"counts": {"train": 12, "test": 3}})
    return {kind: root / kind for kind in ("data", "checkpoints")}


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real ``mlflow server`` in a process group of its own, which can be killed and started again."""

    def __init__(self, folder: Path, uri: str, command: list[str]) -> None:
        self.folder, self.uri, self.command, self.process = folder, uri, command, None
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.environment = {**os.environ, **quiet}

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self.folder / "server.log"
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.1)
        raise RuntimeError(f"mlflow server did not start:\n{log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it with all its workers, as a power cut does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it never started
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, store: str) -> Iterator[str]:
    """A ``Server`` while the block runs; yields its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", store, "--artifacts-destination", (folder / "artifacts").as_uri()]
    server = Server(folder, f"http://127.0.0.1:{port}", command)
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()
