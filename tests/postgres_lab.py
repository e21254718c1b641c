"""A PostgreSQL on this machine, from Debian's packages, and MLflow servers in front of it, with or without logins."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from tracking_world import Server, free_port

PASSWORD = "se:cr/et"
"""With characters that mean something in a URI."""
QUOTED = "se%3Acr%2Fet"
ADMIN, ADMIN_PASSWORD = "admin", "the-admins-own-password"
SETTINGS = "-c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"


class Postgres:
    """A cluster of databases that listens on a port of its own and wants a password."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()

    def uri(self, database: str, password: str = QUOTED) -> str:
        """Address of a database, as MLflow takes it."""
        return f"postgresql://mlflow:{password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database and return its address."""
        self.ask(f"CREATE DATABASE {database}", "postgres")
        return self.uri(database)

    def drop(self, database: str) -> None:
        """Remove a database under those who are connected to it."""
        self.ask(f"DROP DATABASE {database} WITH (FORCE)", "postgres")

    def ask(self, query: str, database: str) -> list[tuple]:
        """Rows of a query, without anything of MLflow between."""
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="mlflow", password=PASSWORD, dbname=database
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def initialise(self) -> None:
        """Make the files of the cluster."""
        (self.root / "password").write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (self.root, self.root / "password"):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", self.root / "password", "--no-sync")

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        options = f"-p {self.port} -k {self.root} {SETTINGS}"
        self._run("pg_ctl", "-w", "-s", "-l", self.root / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, whoever is connected."""
        self._run("pg_ctl", "-w", "-s", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs, which refuse to work for root."""
        command = [*_as_postgres(), _program(program), "-D", str(self.root / "data"), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr


def _as_postgres() -> list[str]:
    return ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []


def _program(name: str) -> str:
    """Debian keeps the servers' programs off the PATH, in a folder per version."""
    found = [*sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), *filter(None, [shutil.which(name)])]
    assert found, f"{name} not found; run `make test-cluster`, which installs it"
    return str(found[-1])


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL while the block runs, in a folder that its own user may enter."""
    with tempfile.TemporaryDirectory(prefix="vpd-postgres-") as folder:
        database = Postgres(Path(folder))
        database.initialise()
        database.start()
        try:
            yield database
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                database.stop()


@contextlib.contextmanager
def group_server(folder: Path, store: str) -> Iterator[Server]:
    """An MLflow server of two workers that everybody may use."""
    server = Server(folder, free_port(), store, "--workers", "2")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def server_with_logins(folder: Path, store: str, users: str) -> Iterator[Server]:
    """An MLflow server that wants a name and a password; ``users`` is the database that knows them."""
    config, escaped = folder / "auth.ini", users.replace("%", "%%")
    config.write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = {escaped}\nadmin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-the-test-alone",
    }
    server = Server(folder, free_port(), store, "--workers", "1", "--app-name", "basic-auth", **environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()
