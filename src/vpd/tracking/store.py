"""Reaching an MLflow store: quick probes instead of long retries, and a database created once."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from vpd.utils.errors import UserError, nearest
from vpd.utils.files import atomic_path, exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Engine

T = TypeVar("T")
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


USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
LOST_RACES = ("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""What MLflow answers where another process was faster: a row is there already, or the run has been deleted."""
ROUNDS = 10
"""How often a process looks again at what others are changing, too."""
TABLES_LOCK = 0x767064
"""Number of PostgreSQL's advisory lock under which this project makes MLflow's tables."""


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
    """``uri`` without user name, password and what else a database's address may hold of that kind."""
    host = urlsplit(uri).netloc
    if "@" in host:
        uri = uri.replace(host, host.rpartition("@")[2], 1)
    if uri.partition(":")[0].partition("+")[0] not in PORTS:
        return uri
    return re.sub("://.*@", "://", uri).partition("?")[0]  # a password with a slash ends the host too soon


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
    """Whether something answers at ``uri``, found out within seconds; files always do. UserError if it is no address."""
    kind = scheme(uri)
    try:
        parts, port = urlsplit(uri), urlsplit(uri).port
    except ValueError:
        raise UserError(
            f"MLflow URI '{shown(uri)}' is no address; write special characters of the password as %XX, such as %2F for /"
        ) from None
    if kind in ("http", "https"):
        return _answers(f"{shown(uri).rstrip('/')}/health")
    if kind not in PORTS or not parts.hostname:
        return True
    try:
        socket.create_connection((parts.hostname, port or PORTS[kind]), PROBE_SECONDS).close()
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
    if scheme(uri) not in PORTS:
        return MlflowClient(tracking_uri=uri)
    with _logged_in(uri):
        return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _logged_in(uri: str) -> Iterator[None]:
    """Be connected to a database in the block, and the only one of this project that makes tables there.

    MLflow would try a wrong password for minutes, and processes that start together would run the same migrations.
    """
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    engine = _engine(uri)
    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        reason = _reason(uri, getattr(error, "orig", None) or error)
        raise Unavailable(
            f"MLflow at {shown(uri)} refused: {reason}; check user, password and database in the address"
        ) from error
    with connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_lock({TABLES_LOCK})"))  # goes with the connection
        yield
    engine.dispose()


def _engine(uri: str) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        return create_engine(uri, poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise UserError(f"MLflow at {shown(uri)} needs the Python package {error.name}; install it") from error
    except (SQLAlchemyError, ValueError) as error:
        raise UserError(f"MLflow URI '{shown(uri)}' is no address of a database; {_reason(uri, error)}") from error


# ------------------------------------------------------------------------------------------------------------- sentences
def _unreachable(uri: str) -> Unavailable:
    return Unavailable(f"MLflow at {shown(uri)} is unreachable; start it or give another --uri")


def _explained(uri: str, error: Exception) -> Unavailable:
    """One sentence for whatever MLflow raised."""
    if not reachable(uri):
        return _unreachable(uri)
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    user, place = os.environ.get(USER), f"MLflow at {shown(uri)}"
    if status == 401 and user:
        return Unavailable(f"{place} does not know user {user} with this password; correct {USER} and {PASSWORD}")
    if status == 401:
        return Unavailable(f"{place} wants a user name and a password; set {USER} and {PASSWORD}")
    if status == 403:
        return Unavailable(f"{place} does not allow this to user {user}; ask its administrator for MANAGE")
    return Unavailable(f"{place} refused: {_reason(uri, error)}")


def _reason(uri: str, error: object) -> str:
    """First line of an error, without passwords."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    given = re.search("://[^:@]*:(.*)@", uri)
    secrets = {os.environ.get(PASSWORD), given and given[1], given and unquote(given[1])}
    for secret in filter(None, secrets):
        reason = reason.replace(secret, "***")
    return reason


# ------------------------------------------------------------------------------------------------------- several at once
def settled(action: Callable[[], T]) -> T:
    """Call ``action``, which looks at the store before it acts, until no other process comes between."""
    from mlflow.exceptions import MlflowException

    for left in reversed(range(ROUNDS)):
        try:
            return action()
        except MlflowException as error:
            if error.error_code not in LOST_RACES or not left:
                raise
    raise AssertionError("the last round returns or raises")


def _create(path: Path) -> None:
    """Create the sqlite database once, under a lock and complete or not at all.

    Without the lock, processes that start together run the same migrations and crash; and a half-migrated file is
    beyond repair for MLflow.
    """
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with exclusive(path.parent / "mlruns" / ".locks" / "create", f"MLflow's {path}"):
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
    """Be the only process that synchronises a sqlite store; a server takes several at once."""
    path = database_file(uri)
    if path is None:
        yield
        return
    with exclusive(path.parent / "mlruns" / ".locks" / "sync", f"MLflow's {path}"):
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
