"""One process imports torch, diffusers and transformers, and the stages of a workflow start as copies of it.

A stage of the smallest scale computes for a second or two, and its imports cost seven more. `start` gives a workflow a server,
which imports the libraries once, but nothing of `vpd`, and then forks for each command. A command that finds the server's name
in VPD_FORK_SERVER calls `run`: it hands over its arguments, environment and open files, waits, and ends as the copy ends. The
copy reads `vpd` from disk, so it runs the code, and writes the bits, that the command would have run and written by itself.

A command runs in its own process if there is no server, or one that was started in another folder or environment. Nothing
outlives its owner: a command that is killed takes its copy along, and a workflow that is killed its server and all copies.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from vpd.utils.errors import UserError
from vpd.utils.processes import end_with_parent

VARIABLE = "VPD_FORK_SERVER"
PRESETS = {
    "TRANSFORMERS_VERBOSITY": "error",  # it advises at import time against parts not used here
    # OpenMP threads that spin for long starve each other when anything else runs: a step of 0.3 s became one of 5 s.
    "GOMP_SPINCOUNT": "10000",
}
"""Environment variables that libraries read while they are imported, unless the user has set them."""
LIBRARIES = {
    "torch._dynamo": (),
    "torch.utils.data": (),
    "accelerate": (),
    "cv2": (),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "StableDiffusionPipeline", "UNet2DConditionModel"),
    "matplotlib.figure": (),
    "pycocotools.mask": (),
    "pydantic": (),
    "safetensors.torch": (),
    "timm": (),
    "transformers": ("AutoTokenizer", "BertModel", "CLIPModel", "CLIPTokenizer"),
}
"""What to import, with classes where the library imports these only when they are first used."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
PER_JOB = {VARIABLE, "_", "OLDPWD", "PWD", "SHLVL", "TEMP", "TEMPDIR", "TMP", "TMPDIR", "DVC_ROOT", "DVC_STAGE"}
"""Variables that may differ from job to job because no import reads them."""


# -------------------------------------------------------------------------------------------------- called by the workflow
def start() -> subprocess.Popen:
    """Start a server for the commands that this process will start, and return it at once; it ends with this process.

    It imports nothing before the first command asks, which then waits for the imports as it would for its own.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # the kernel chooses a name outside the file system, of which nothing remains
        listener.listen(128)
        # Each copy sets its own number of threads. OpenBLAS would start some with numpy, and only one thread can be copied.
        environment = {name: value for name, value in os.environ.items() if not _of_threads(name)}
        server = subprocess.Popen(
            [sys.executable, "-m", "vpd.utils.forkserver", str(listener.fileno()), str(os.getpid())],
            env={**PRESETS, **environment, "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the commands, which pass it on
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.environ[VARIABLE] = listener.getsockname()[1:].decode()
    return server


# --------------------------------------------------------------------------------------------------- called by the command
def run() -> int | None:
    """Run this `vpd` command in a copy of the server; its exit status, or None if it has to run here.

    Ends with the signal that ended the copy, if one did. UserError if the server is lost before the copy has ended.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect("\0" + name)
            copy = _ask(server) if _own(server) else None
        except OSError:
            return None
        if not copy:
            return None
        with _forwarded(copy):
            status = _receive(server)
    if status is None:
        raise UserError("the workflow that started this command has ended; run it again to continue")
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _ask(server: socket.socket) -> int | None:
    """Send all that the copy needs to stand in for this process; its process id, or 0 if it refuses."""
    os.umask(umask := os.umask(0o077))
    request = {
        "argv": sys.argv,
        "path": sys.path,
        "umask": umask,
        "environment": {**os.environ},
        "surroundings": _surroundings(),
    }
    socket.send_fds(server, [b" "], [0, 1, 2])
    server.sendall(json.dumps(request).encode() + b"\n")
    return _receive(server)


@contextlib.contextmanager
def _forwarded(copy: int) -> Iterator[None]:
    """Pass on the signals that this process gets while the block runs, but for those that it ignores."""

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, number)

    handlers = {number: signal.getsignal(number) for number in FORWARDED}
    taken = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


# -------------------------------------------------------------------------------------------------------------- both sides
def _surroundings() -> list[Any]:
    """What libraries may have read while they were imported."""
    settings = {name: value for name, value in os.environ.items() if name not in PER_JOB and not _of_threads(name)}
    return [sys.executable, os.getcwd(), {**PRESETS, **settings}]


def _of_threads(name: str) -> bool:
    """Whether an environment variable is one like OMP_NUM_THREADS."""
    return name.endswith("_THREADS")


def _own(connection: socket.socket) -> bool:
    """Whether the other side belongs to the same user, since others can reach the name, too."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] == os.getuid()


def _send(connection: socket.socket, number: int) -> None:
    connection.sendall(struct.pack("i", number))


def _receive(connection: socket.socket) -> int | None:
    """A number that the other side sent; None if it is gone."""
    data = connection.recv(4)
    return struct.unpack("i", data)[0] if data else None


# -------------------------------------------------------------------------------------------------------------- the server
class Copy(NamedTuple):
    """A process that stands in for a command."""

    pid: int
    end: int  # file descriptor that becomes readable when the process ends
    command: socket.socket


class Server:
    """Forks for every command that connects, kills copies whose command is gone, and tells commands how theirs ended.

    It reads nothing from a connection, so that no command can hold it up.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.copies: dict[int, Copy] = {}  # by each of their two file descriptors
        self.poll = select.poll()
        self.poll.register(listener, select.POLLIN)

    def serve(self) -> socket.socket:
        """Return only in the copies, each with the connection to its command."""
        while True:
            ready, _ = self.poll.poll()[0]  # one at a time: it may close what the next event is about
            if ready != self.listener.fileno():
                self._end(self.copies[ready], killed=ready != self.copies[ready].end)
            elif connection := self._fork():
                return connection

    def _fork(self) -> socket.socket | None:
        connection, _ = self.listener.accept()
        if not _own(connection):
            connection.close()
        elif pid := os.fork():
            copy = Copy(pid, os.pidfd_open(pid), connection)
            self.copies |= {copy.end: copy, connection.fileno(): copy}
            self.poll.register(copy.end, select.POLLIN)
            self.poll.register(connection, select.POLLRDHUP)
        else:
            self._close()
            return connection
        return None

    def _end(self, copy: Copy, killed: bool) -> None:
        """Tell the command how its copy ended, after a SIGKILL if the command is gone."""
        if killed:
            os.kill(copy.pid, signal.SIGKILL)
        _, status = os.waitpid(copy.pid, 0)
        for file in (copy.end, copy.command.fileno()):
            self.poll.unregister(file)
            del self.copies[file]
        os.close(copy.end)
        with copy.command, contextlib.suppress(OSError):
            _send(copy.command, status)

    def _close(self) -> None:
        """In a copy: close what belongs to the server, so that its end is seen by those at the other ends."""
        self.listener.close()
        for copy in {*self.copies.values()}:
            os.close(copy.end)
            copy.command.close()


# ---------------------------------------------------------------------------------------------------------------- the copy
def _stand_in(connection: socket.socket, started_in: list[Any]) -> None:
    """Become the process that the command at the other side of the connection is, and run it."""
    end_with_parent(signal.SIGKILL)
    os.setsid()
    with connection:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline())
        if request["surroundings"] != started_in:
            _send(connection, 0)
            return
        _take_over(files, request)
        _send(connection, os.getpid())
    try:
        runpy.run_path(request["argv"][0], run_name="__main__")
        _Exit.status = 0
    except SystemExit as end:
        _Exit.status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _take_over(files: list[int], request: dict[str, Any]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update({name: value for name, value in request["environment"].items() if name != VARIABLE})
    sys.argv, sys.path[:] = request["argv"], request["path"]
    for name in [name for name in sys.modules if name.split(".")[0] == "vpd"]:
        del sys.modules[name]  # it may have been edited since
    threads = os.environ.get("OMP_NUM_THREADS", "")  # OpenMP has read its environment in the server
    if threads.isascii() and threads.isdigit() and int(threads):
        sys.modules["torch"].set_num_threads(int(threads))


class _Exit:
    """The last thing that a copy does at its end."""

    status = 1  # as after an exception that nobody handles

    @classmethod
    def leave(cls) -> None:
        """Skip the interpreter's own clearing up: it would write to all the memory that copies share, for a second."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(cls.status)


def main(listener: socket.socket, owner: int) -> None:
    """Import the libraries once the first command asks, and serve until the owner ends."""
    end_with_parent()
    if os.getppid() != owner:  # it has ended already
        return
    atexit.register(_Exit.leave)  # before any library registers something, to be called after it
    started_in = _surroundings()
    select.select([listener], [], [])
    for library, names in LIBRARIES.items():
        module = import_module(library)
        for name in names:
            getattr(module, name)
    gc.freeze()  # otherwise each copy's collector would write to, and so copy, the memory that all share
    if (
        len(os.listdir("/proc/self/task")) == 1
    ):  # a fork has only the thread that forks, and maybe locks that others held
        _stand_in(Server(listener).serve(), started_in)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
