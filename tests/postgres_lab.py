"""A PostgreSQL on this machine, from Debian's packages, and MLflow servers in front of it, started as docs/mlflow.md says."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from tracking_world import Server, free_port

DOCS = (Path(__file__).parents[1] / "docs" / "mlflow.md").read_text(encoding="utf-8")
SECTION = DOCS.partition("\n## A server for the group\n")[2].partition("\n## ")[0]
PREPARE, SERVE, PREPARE_LOGINS, SERVE_WITH_LOGINS, ADD_USER, WORK = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
"""The section's commands."""
PASSWORD, QUOTED = "se:cr/et", "se%3Acr%2Fet"
"""One with characters that mean something in a URI, and how it is written there."""
ADMIN_PASSWORD = "the-admins-own-password"
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
        self.ask(f"CREATE DATABASE {database} OWNER mlflow")
        return self.uri(database)

    @contextlib.contextmanager
    def closed(self, database: str) -> Iterator[None]:
        """Throw everybody out of a database and let nobody in while the block runs."""
        self.ask(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        self.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        try:
            yield
        finally:
            self.ask(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")

    def ask(self, query: str, database: str = "postgres") -> list[tuple]:
        """Rows of a query, without anything of MLflow between."""
        login = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "password": PASSWORD, "dbname": database}
        with contextlib.closing(psycopg2.connect(**login)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def shell(self, command: str) -> None:
        """Run documented commands as PostgreSQL's own user."""
        login = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD}
        subprocess.run(["sh", "-ec", filled(command, self.root, self)], check=True, env={**os.environ, **login})

    def initialise(self) -> None:
        """Make the files of the cluster."""
        (self.root / "password").write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (self.root, self.root / "password"):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-U", "postgres", "-A", "scram-sha-256", "--pwfile", self.root / "password", "--no-sync")

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        options = f"-p {self.port} -k {self.root} {SETTINGS}"
        self._run("pg_ctl", "-w", "-s", "-l", self.root / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once, whoever is connected."""
        self._run("pg_ctl", "-w", "-s", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs, which refuse to work for root."""
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, _program(program), "-D", str(self.root / "data"), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr


def _program(name: str) -> str:
    """Debian keeps the server's programs off the PATH, in a folder per version."""
    found = [*sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), *filter(None, [shutil.which(name)])]
    assert found, f"{name} not found; run `make test-cluster`, which installs it"
    return str(found[-1])


def filled(command: str, folder: Path, database: Postgres, port: int = 5000) -> str:
    """A documented command with this machine's places in it, and passwords of its own."""
    lines = []
    for line in command.splitlines():
        quoted = QUOTED.replace("%", "%%") if line.startswith("database_uri") else QUOTED
        lines.append(line.replace(":choose-one@", f":{quoted}@").replace("'choose-one'", f"'{PASSWORD}'"))
    here = {
        "choose-another-one": ADMIN_PASSWORD,
        "localhost:5432": f"127.0.0.1:{database.port}",
        "/srv/mlflow": str(folder),
        "mlflow.example.org:5000": f"127.0.0.1:{port}",
        "--port 5000": f"--port {port}",
        "0.0.0.0": "127.0.0.1",
        "mlflow server": "exec mlflow server --workers 2",
    }
    text = "\n".join(lines)
    for documented, real in here.items():
        text = text.replace(documented, real)
    return text


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL with the group's database while the block runs, in a folder that its own user may enter."""
    with tempfile.TemporaryDirectory(prefix="vpd-postgres-") as folder:
        database = Postgres(Path(folder))
        database.initialise()
        database.start()
        try:
            database.shell(PREPARE)
            yield database
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                database.stop()


@contextlib.contextmanager
def serving(command: str, folder: Path, database: Postgres) -> Iterator[Server]:
    """An MLflow server, started by a documented command, while the block runs."""
    port = free_port()
    server = Server(folder, f"http://127.0.0.1:{port}", ["sh", "-ec", filled(command, folder, database, port)])
    try:
        server.start()
        yield server
    finally:
        server.kill()
