"""Connections to an MLflow store: quick probes instead of long retries, one-sentence errors, no secrets in them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from vpd.utils.errors import UserError, nearest
from vpd.utils.files import atomic_path, exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 3.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SCHEMES = ("http", "https", "sqlite", *PORTS)
# One retry and short waits: with MLflow's defaults a call to a dead server takes four minutes.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
TABLES_LOCK = 0x767064  # PostgreSQL's advisory lock under which this project creates MLflow's tables


class Unavailable(UserError):
    """MLflow cannot be reached, or refuses a request."""


def scheme(uri: str) -> str:
    """Return the kind of store, without its driver; UserError if MLflow has no such kind."""
    name = uri.partition(":")[0].partition("+")[0]
    if name not in SCHEMES or ":" not in uri:
        raise UserError(
            f"MLflow URI '{shown(uri)}' names no store {nearest(name, SCHEMES)}; "
            "write for example sqlite:///mlflow.db or http://localhost:5000"
        )
    return name


def shown(uri: str) -> str:
    """Return an address without user, password and query, which may contain a token."""
    kind, separator, rest = uri.partition("://")
    if kind != "sqlite":
        host = re.split("[/?#]", rest, maxsplit=1)[0]
        if "@" not in host and ":" in host and not host.rpartition(":")[2].isdigit():
            secret = rest  # a password with / or ?, which ends the host too early
        else:
            secret = host if kind in ("http", "https") else rest.partition("?")[0]
        rest = rest[secret.rfind("@") + 1 :]
    return re.split("[?#]", f"{kind}{separator}{rest}", maxsplit=1)[0]


def database_file(uri: str) -> Path | None:
    """Return the absolute file of a sqlite store; None for all other stores."""
    if scheme(uri) != "sqlite":
        return None
    path = uri.partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        raise UserError(
            f"MLflow URI '{shown(uri)}' names no file; write sqlite:///mlflow.db or sqlite:////folder/mlflow.db"
        )
    return Path(path).absolute()


def reachable(uri: str) -> bool:
    """Probe a server for at most a few seconds; files are always reachable."""
    kind = scheme(uri)
    try:
        host, port = urlsplit(uri).hostname, urlsplit(uri).port
    except ValueError:
        raise UserError(
            f"MLflow URI '{shown(uri)}' is not a valid address; write special characters of the password as %XX, "
            "such as %2F for /"
        ) from None
    if kind in ("http", "https"):
        return _answers(f"{shown(uri).rstrip('/')}/health")
    if kind not in PORTS or not host:
        return True
    try:
        socket.create_connection((host, port or PORTS[kind]), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # a server that wants a login, or has another health page, is alive
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # whom to trust is decided by MLflow's own settings
    except (OSError, ValueError, HTTPException):
        return False
    return True


@contextlib.contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the store at ``uri``; whatever MLflow cannot do in the block raises ``Unavailable``."""
    if not reachable(uri):
        raise _unreachable(uri)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield _client(uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise _explained(uri, error) from error


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    if path := database_file(uri):
        _create(path)
        return MlflowClient(tracking_uri=f"sqlite:///{path}")
    return _database_client(uri) if scheme(uri) in PORTS else MlflowClient(tracking_uri=uri)


def _create(path: Path) -> None:
    """Create the sqlite database, complete or not at all: MLflow cannot repair one that was killed while migrating."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if path.is_file() and path.stat().st_size:
        return
    # Processes that start together would run the same migrations and crash.
    with exclusive(path.parent / "mlruns" / "database", f"MLflow's {path}"):
        if not (path.is_file() and path.stat().st_size):
            with atomic_path(path) as temporary:
                temporary.unlink(missing_ok=True)
                SqlAlchemyStore(f"sqlite:///{temporary}", (path.parent / "mlruns").as_uri()).engine.dispose()


def _database_client(uri: str) -> MlflowClient:
    """Log in before MLflow does, which would try a wrong password for minutes."""
    from mlflow import MlflowClient
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        connection = create_engine(uri, poolclass=NullPool).connect()
    except (SQLAlchemyError, ValueError, ImportError) as error:  # the driver may not be installed
        reason = _reason(uri, getattr(error, "orig", None) or error)
        raise Unavailable(f"MLflow at {shown(uri)} refused: {reason}; correct the address") from error
    with connection:
        if connection.dialect.name == "postgresql":
            # As in ``_create``; the server releases the lock with the connection.
            connection.execute(text(f"SELECT pg_advisory_lock({TABLES_LOCK})"))
        return MlflowClient(tracking_uri=uri)


def experiment_id(client: MlflowClient, uri: str, scale: str) -> str:
    """Return the id of the MLflow experiment of ``scale``; create it if needed."""
    from mlflow.exceptions import MlflowException

    name, path = f"vpd-{scale}", database_file(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, (path.parent / "mlruns" / name).as_uri() if path else None)
        except MlflowException:  # seeds that are trained side by side log live: another one was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which MLflow reads at every request, in the block."""
    before = {name: os.environ.pop(name) for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def _unreachable(uri: str) -> Unavailable:
    return Unavailable(f"MLflow at {shown(uri)} is unreachable; start it or give another --uri")


def _explained(uri: str, error: Exception) -> Unavailable:
    """Put whatever MLflow raised into one sentence."""
    if not reachable(uri):
        return _unreachable(uri)
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    user, server = os.environ.get(USER), f"MLflow at {shown(uri)}"
    if status == 401 and user:
        return Unavailable(f"{server} does not know user {user} with this password; correct {USER} and {PASSWORD}")
    if status == 401:
        return Unavailable(f"{server} wants a user name and a password; set {USER} and {PASSWORD}")
    if status == 403:
        return Unavailable(f"{server} does not allow this to user {user}; ask its administrator for MANAGE")
    return Unavailable(f"{server} refused: {_reason(uri, error)}")


def _reason(uri: str, error: object) -> str:
    """Return the first line of an error, without passwords and tokens."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    password = re.search("://[^:@]*:(.*)@", uri)
    secrets = {os.environ.get(PASSWORD), os.environ.get(TOKEN), *(value for _, value in parse_qsl(urlsplit(uri).query))}
    secrets |= {password[1], unquote(password[1])} if password else set()
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        reason = reason.replace(secret, "***")
    return reason
