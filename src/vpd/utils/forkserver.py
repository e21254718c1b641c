"""One process imports torch, diffusers and transformers, and the stages of a workflow start as copies of it.

A stage of the smallest scale computes for a second or two, and its imports cost seven more. `start` gives a workflow a server,
which imports the libraries once, but nothing of `vpd`, and then forks for each command. A command that finds the server's name
in VPD_FORK_SERVER calls `run`: it hands over its arguments, environment and open files, waits, and ends as the copy ends. The
copy reads `vpd` from disk, so it runs the code, and writes the bits, that the command would have run and written by itself.

A command runs in its own process if there is no server, or one that was started in another folder or environment. Nothing
outlives its owner: a command that is killed takes its copy along, and a workflow that is killed its server and all copies. To
this end each copy has a keeper, another fork of the server, which waits for the end of the copy and of the command.
"""

import atexit
import contextlib
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import Any

from vpd.utils.digests import digest
from vpd.utils.errors import UserError
from vpd.utils.processes import end_with_parent

VARIABLE = "VPD_FORK_SERVER"
"""The digest of the server's surroundings and the name of its socket."""
PRESETS = {
    "TRANSFORMERS_VERBOSITY": "error",  # it advises at import time against parts not used here
    # OpenMP threads that spin for long starve each other when anything else runs: a step of 0.3 s became one of 5 s.
    "GOMP_SPINCOUNT": "10000",
}
"""Environment variables that libraries read while they are imported, unless the user has set them."""
FIXED = {"MPLBACKEND": "agg"}
"""And what the user cannot set: figures are only written, and matplotlib dies of a backend that it does not know."""
LIBRARIES = (
    "torch._dynamo", "torch.utils.data", "accelerate", "cv2", "matplotlib.figure", "pycocotools.mask", "pydantic",
    "safetensors.torch", "timm", "diffusers:AutoencoderKL", "diffusers:DDIMScheduler", "diffusers:StableDiffusionPipeline",
    "diffusers:UNet2DConditionModel", "transformers:AutoTokenizer", "transformers:BertModel", "transformers:CLIPModel",
    "transformers:CLIPTokenizer",
)  # fmt: skip
"""What to import; classes where a library imports these only when they are first used."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
PER_JOB = {VARIABLE, "_", "OLDPWD", "PWD", "SHLVL", "TEMP", "TEMPDIR", "TMP", "TMPDIR", "DVC_ROOT", "DVC_STAGE"}
"""Variables that may differ from job to job because no import reads them."""
LONGEST = 1 << 20
"""Bytes of a request. The kernel refuses to send one of more than a fifth of this; such a command runs by itself."""


# -------------------------------------------------------------------------------------------------- called by the workflow
def start() -> subprocess.Popen:
    """Start a server for the commands that this process will start, and return it at once; it ends with this process.

    It imports nothing before the first command asks, which then waits for the imports as it would for its own.
    """
    with _socket() as listener:
        listener.bind("")  # the kernel chooses a name outside the file system, of which nothing remains
        listener.listen(128)
        server = subprocess.Popen(
            [sys.executable, "-m", "vpd.utils.forkserver", str(listener.fileno()), str(os.getpid())],
            # OpenBLAS would start threads with numpy, and only one thread can be copied.
            env=_environment() | {"OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the commands, which pass it on
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.environ[VARIABLE] = f"{_surroundings()} {listener.getsockname()[1:].decode()}"
    return server


# --------------------------------------------------------------------------------------------------- called by the command
def run() -> int | None:
    """Run this `vpd` command in a copy of the server; its exit status, or None if it has to run here.

    Ends with the signal that ended the copy, if one did. UserError if the server is lost before the copy has ended.
    """
    surroundings, _, name = os.environ.get(VARIABLE, "").partition(" ")
    if not name or surroundings != _surroundings():
        return None
    with _socket() as server:
        try:
            server.connect(f"\0{name}")
            if not _own(server):
                return None
            # A signal that comes between the copy's start and the answer that names it waits, and is then passed on.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
            try:
                request = json.dumps([sys.argv, sys.path, {**os.environ}]).encode()
                socket.send_fds(server, [request], [0, 1, 2])
                if (copy := _receive(server)) is not None:
                    _forward_signals(copy)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError:
            return None
        if copy is None:
            return None
        status = _receive(server)
    if status is None:
        raise UserError("the workflow that started this command has ended; run it again to continue")
    if os.WIFSIGNALED(status):
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _forward_signals(copy: int) -> None:
    """Pass on the signals that this process gets from now on, but for those that it ignores."""

    def forward(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(copy, number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)


# -------------------------------------------------------------------------------------------------------------- both sides
def _socket() -> socket.socket:
    """A socket whose messages arrive whole."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _environment() -> dict[str, str]:
    """The environment without numbers of threads (OMP_NUM_THREADS and the like), which each copy sets for itself."""
    return PRESETS | {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")} | FIXED


def _surroundings() -> str:
    """Digest of what libraries may have read while they were imported, and of what a copy keeps from the server."""
    settings = {name: value for name, value in _environment().items() if name not in PER_JOB}
    os.umask(umask := os.umask(0o077))
    return digest([sys.executable, os.getcwd(), umask, settings])


def _own(connection: socket.socket) -> bool:
    """Whether the other side belongs to the same user, since others can reach the name, too."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] == os.getuid()


def _receive(connection: socket.socket) -> int | None:
    """A number that the other side sent as text; None if it is gone."""
    text = connection.recv(20)
    return int(text) if text else None


# -------------------------------------------------------------------------------------------------------------- the server
def serve(listener: socket.socket) -> socket.socket:
    """Fork a keeper and a copy for every command that connects; return only in copies, each with its connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while True:
        connection, _ = listener.accept()
        if not _own(connection) or os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end_with_parent(signal.SIGKILL)
        if not (copy := os.fork()):
            end_with_parent(signal.SIGKILL)
            return connection
        _keep(copy, connection)
        os._exit(0)


def _keep(copy: int, connection: socket.socket) -> None:
    """Wait until a copy has ended, and tell its command how; kill the copy if the command is gone."""
    poll = select.poll()
    poll.register(os.pidfd_open(copy), select.POLLIN)
    poll.register(connection, select.POLLRDHUP)
    if connection.fileno() in dict(poll.poll()):
        os.kill(copy, signal.SIGKILL)
    _, status = os.waitpid(copy, 0)
    with contextlib.suppress(OSError):
        connection.send(b"%d" % status)


# ---------------------------------------------------------------------------------------------------------------- the copy
def _stand_in(connection: socket.socket) -> None:
    """Become the process that the command at the other side of the connection is, and run it."""
    global _status
    os.setsid()
    with connection:
        request, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
        _take_over(files, *json.loads(request))
        connection.send(b"%d" % os.getpid())
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        _status = 0
    except SystemExit as end:
        _status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _take_over(files: list[int], arguments: list[str], path: list[str], environment: dict[str, Any]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    # The server's own were opened on /dev/null, and know what a pipe cannot do.
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=sys.stderr.encoding, errors=sys.stderr.errors, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    del os.environ[VARIABLE]
    sys.argv, sys.path[:] = arguments, path
    for name in [name for name in sys.modules if name.split(".")[0] == "vpd"]:
        del sys.modules[name]  # it may have been edited since
    threads = os.environ.get("OMP_NUM_THREADS", "")  # OpenMP has read its environment in the server
    if threads.isascii() and threads.isdigit() and int(threads):
        sys.modules["torch"].set_num_threads(int(threads))


_status = 1  # with which a copy ends: as after an exception that nobody handles


def _leave() -> None:
    """Skip the interpreter's own clearing up: it would write to all the memory that copies share, for a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)


def main(listener: socket.socket, owner: int) -> None:
    """Import the libraries once the first command asks, and serve until the owner ends."""
    end_with_parent()
    if os.getppid() != owner:  # it has ended already
        return
    atexit.register(_leave)  # before any library registers something, to be called after it
    select.select([listener], [], [])
    for name in LIBRARIES:
        pkgutil.resolve_name(name)
    gc.freeze()  # otherwise each copy's collector would write to, and so copy, the memory that all share
    # A fork has only the thread that forks, and maybe locks that others held.
    if len(os.listdir("/proc/self/task")) == 1:
        _stand_in(serve(listener))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
