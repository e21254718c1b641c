"""Reaching an MLflow store: quick probes instead of long retries, a database created once, one writer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vpd.errors import UserError, nearest
from vpd.files import atomic_path, locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 3.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SCHEMES = ("http", "https", "sqlite", *PORTS)
# One retry and short waits: MLflow's defaults hold a call to a dead server for four minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Unavailable(UserError):
    """MLflow cannot be reached, or does not do what it is asked."""


def scheme(uri: str) -> str:
    """Kind of store that ``uri`` names, without its driver; UserError if MLflow knows no such kind."""
    name = uri.partition(":")[0].partition("+")[0]
    if name not in SCHEMES or ":" not in uri:
        raise UserError(
            f"MLflow URI '{shown(uri)}' names no store {nearest(name, SCHEMES)}; "
            "write for example sqlite:///mlflow.db or http://localhost:5000"
        )
    return name


def shown(uri: str) -> str:
    """``uri`` without user name and password."""
    host = urlsplit(uri).netloc
    return uri.replace(host, host.rpartition("@")[2], 1) if "@" in host else uri


def database_file(uri: str) -> Path | None:
    """File of a sqlite store, absolute; None for every other store."""
    if scheme(uri) != "sqlite":
        return None
    path = uri.partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        raise UserError(f"MLflow URI '{uri}' names no file; write sqlite:///mlflow.db or sqlite:////folder/mlflow.db")
    return Path(path).absolute()


# -------------------------------------------------------------------------------------------------------------- probe
def reachable(uri: str) -> bool:
    """Whether something answers at ``uri``, found out within seconds; files always do."""
    parts, kind = urlsplit(uri), scheme(uri)
    if kind in ("http", "https"):
        return _answers(f"{shown(uri).rstrip('/')}/health")
    if kind not in PORTS or not parts.hostname:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or PORTS[kind]), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # a server that wants a login, or has another health page, is alive
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # whom to trust is for MLflow's own settings to say
    except (OSError, ValueError):
        return False
    return True


# --------------------------------------------------------------------------------------------------------- connection
@contextlib.contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the store at ``uri``; whatever MLflow cannot do in the block becomes ``Unavailable``."""
    if not reachable(uri):
        raise Unavailable(f"MLflow at {shown(uri)} is unreachable; start it or give another --uri")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if path := database_file(uri):
            _create(path)
            uri = f"sqlite:///{path}"
        yield MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if not reachable(uri):
            raise Unavailable(f"MLflow at {shown(uri)} is unreachable; start it or give another --uri") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise Unavailable(f"MLflow at {shown(uri)} refused: {reason}") from error


def _create(path: Path) -> None:
    """Create the sqlite database once, under a lock and complete or not at all.

    Without the lock, processes that start together run the same migrations and crash; and a half-migrated file is
    beyond repair for MLflow.
    """
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with waiting_lock(path.parent / "mlruns" / ".locks" / "create"):
        if path.is_file() and path.stat().st_size:
            return
        with atomic_path(path) as temporary:
            temporary.unlink(missing_ok=True)
            SqlAlchemyStore(f"sqlite:///{temporary}", (path.parent / "mlruns").as_uri()).engine.dispose()


@contextlib.contextmanager
def as_global(uri: str) -> Iterator[None]:
    """Make ``uri`` MLflow's global store in the block, which is where its sqlite registry looks logged models up."""
    import mlflow

    before = mlflow.get_tracking_uri()
    with setting("MLFLOW_TRACKING_URI", uri):
        chosen = mlflow.get_tracking_uri() != uri  # in this process, which counts for more than the environment
        try:
            if chosen:
                mlflow.set_tracking_uri(uri)
            yield
        finally:
            if chosen:
                mlflow.set_tracking_uri(before)


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """Set an environment variable in the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextlib.contextmanager
def writing(uri: str) -> Iterator[None]:
    """Be the only process of this machine that synchronises the store at ``uri``."""
    if path := database_file(uri):
        folder = path.parent / "mlruns" / ".locks" / "sync"
    else:
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"vpd-mlflow-{os.getuid()}-{name}"
    with waiting_lock(folder):
        yield


@contextlib.contextmanager
def waiting_lock(folder: Path, seconds: float = 600.0) -> Iterator[None]:
    """``files.locked`` that waits for its turn; UserError when it does not come within ``seconds``."""
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield


def experiment_name(scale: str) -> str:
    """MLflow experiment that holds the runs of one scale."""
    return f"vpd-{scale}"


def experiment_id(client: MlflowClient, uri: str, scale: str) -> str:
    """Id of the MLflow experiment of ``scale``, made or restored if need be."""
    from mlflow.exceptions import MlflowException

    name, path = experiment_name(scale), database_file(uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, (path.parent / "mlruns" / name).as_uri() if path else None)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id
