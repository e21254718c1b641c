"""A real SSH server on loopback, from Debian's package: keys, settings and port of its own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SETTINGS = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host
PidFile none
AuthorizedKeysFile {root}/authorized_keys
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
Subsystem sftp internal-sftp
"""
PRIVILEGES = Path("/run/sshd")
"""Debian's sshd refuses to start as root without this empty folder."""


class Server:
    """The running server: ``user`` can log in with ``keyfile`` and in no other way."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.user, self.keyfile = pwd.getpwuid(os.getuid()).pw_name, root / "id_ed25519"

    def url(self, folder: Path) -> str:
        return f"ssh://127.0.0.1:{self.port}{folder}"

    def start(self) -> subprocess.Popen:
        """Make both key pairs, let the user in, start the server and wait until it answers."""
        self.root.mkdir(parents=True, exist_ok=True)
        for key in (self.root / "host", self.keyfile):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        shutil.copy(self.keyfile.with_suffix(".pub"), self.root / "authorized_keys")
        (self.root / "sshd_config").write_text(SETTINGS.format(port=self.port, root=self.root))
        if os.getuid() == 0:
            PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
        command = [sshd(), "-D", "-f", str(self.root / "sshd_config"), "-E", str(self.root / "log")]
        process, deadline = subprocess.Popen(command), time.monotonic() + 30
        while not answers(self.port):
            late = process.poll() is not None or time.monotonic() > deadline
            assert not late, (self.root / "log").read_text()
            time.sleep(0.05)
        return process


def sshd() -> str:
    """Full path of the server, which insists on one."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, "sshd not found; run `make test-cluster`, which installs it"
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@contextlib.contextmanager
def ssh_server(root: Path) -> Iterator[Server]:
    server = Server(root)
    process = server.start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(10)
