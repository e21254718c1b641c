"""Commands that run in a copy of the fork server behave in all respects as if they ran by themselves."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vpd.utils import forkserver

SOURCE = Path(__file__).parent.parent / "src"
COMMAND = """\
import os, signal, sys, time
from vpd.utils import forkserver

status = forkserver.run()
if status is not None:
    sys.exit(status)
copied = "torch" in sys.modules
"""
"""The beginning of a command like `vpd`; what follows it is done by the copy if there is one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a workflow that has a server."""
    folder = tmp_path_factory.mktemp("workflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(SOURCE))
        patch.setenv("PYTEST_CURRENT_TEST", "")  # otherwise each test has surroundings of its own
        server = forkserver.start()
        yield folder
        server.kill()
        server.wait()
        os.environ.pop(forkserver.VARIABLE, None)


def command(place: Path, program: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """Start a command that does what ``program`` says."""
    place.joinpath("command.py").write_text(COMMAND + textwrap.dedent(program))
    return subprocess.Popen(
        [sys.executable, "command.py", *arguments],
        cwd=place,
        env={**os.environ, **environment} | {"PYTEST_CURRENT_TEST": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition) -> None:
    """Until it holds, at most half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_has_the_commands_arguments_files_environment_and_threads(place):
    program = """
        import torch
        print(copied, sys.argv[1:], sys.stdin.read(), os.environ["OF_THE_JOB_THREADS"], torch.get_num_threads())
        print(os.getcwd(), len(os.listdir("/proc/self/task")), forkserver.VARIABLE in os.environ)
        print("an error", file=sys.stderr)
    """
    job = command(place, program, "--option", "a b", OF_THE_JOB_THREADS="x", OMP_NUM_THREADS="1")
    out, error = job.communicate("text")
    assert out.splitlines() == ["True ['--option', 'a b'] text x 1", f"{place} 1 False"]
    assert (error, job.returncode) == ("an error\n", 0)


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("sys.exit(2)", 2, ""),
        ("sys.exit('a sentence')", 1, "a sentence"),
        ("raise ValueError('of the code')", 1, "ValueError: of the code"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'at the end')", 0, ""),
    ],
)
def test_the_command_ends_as_its_copy(place, end, status, message):
    job = command(place, f"print('not flushed by itself')\nassert copied\n{end}")
    out, error = job.communicate()
    assert job.returncode == status
    assert message in error
    assert "not flushed" in out or status < 0
    assert ("at the end" in out) == ("atexit" in end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_copy(place, number):
    program = f"""
        signal.signal({number}, lambda number, frame: sys.exit(copied + 40))
        print("ready", flush=True)
        time.sleep(60)
    """
    job = command(place, program)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    job.communicate()
    assert job.returncode == 41


def test_without_a_handler_a_signal_ends_both_alike(place):
    job = command(place, "print(os.getpid(), flush=True); time.sleep(60)")
    copy = int(job.stdout.readline())
    job.terminate()
    job.communicate()
    assert job.returncode == -signal.SIGTERM
    assert not alive(copy)


def test_a_killed_command_takes_its_copy_along(place):
    job = command(place, "print(os.getpid(), flush=True); time.sleep(60)")
    copy = int(job.stdout.readline())
    assert copy != job.pid
    job.kill()
    job.communicate()
    wait_for(lambda: not alive(copy))


def test_code_is_read_when_a_command_starts(place):
    for number in ("1", "2"):
        place.joinpath("edited.py").write_text(f"NUMBER = {number}\n# {'x' * int(number)}\n")
        assert command(place, "import edited; print(copied, edited.NUMBER)").communicate()[0] == f"True {number}\n"


@pytest.mark.parametrize(
    "environment", [{"HF_HOME": "elsewhere"}, {"VPD_FORK_SERVER": "gone"}, {"VPD_FORK_SERVER": ""}]
)
def test_in_other_surroundings_or_without_a_server_it_runs_by_itself(place, environment):
    job = command(place, "print(copied, os.getpid())", **environment)
    assert job.communicate()[0] == f"False {job.pid}\n"


def test_a_killed_workflow_leaves_no_process_behind(tmp_path):
    """The owner dies by SIGKILL; its server, the copy and the waiting command end, too."""
    (tmp_path / "command.py").write_text(COMMAND + "print(os.getpid(), flush=True); time.sleep(60)")
    owner = """
        import subprocess, sys
        from vpd.utils import forkserver
        print(forkserver.start().pid, flush=True)
        job = subprocess.Popen([sys.executable, "command.py"])
        print(job.pid, flush=True)
        job.wait()
    """
    workflow = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(owner)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes = [int(workflow.stdout.readline()) for _ in ("server", "command", "copy")]
    assert all(map(alive, processes))
    workflow.kill()
    wait_for(lambda: not any(map(alive, processes)))
    assert "has ended; run it again" in workflow.communicate()[1]


def servers(owner: int) -> list[Path]:
    """Folders in /proc of the servers that were started by a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")[:-1]
            found += [path.parent] * (b"vpd.utils.forkserver" in words and words[-1] == b"%d" % owner)
    return found


@pytest.mark.parametrize(("words", "status"), [(["sh", "-c", "exit 3"], 3), (["no-such-command"], 2), ([], 2)])
def test_preload_ends_as_the_command_does_and_leaves_no_server(words, status):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.Popen([sys.executable, "-m", "vpd.cli", "preload", *words], env=environment)
    assert done.wait() == status
    wait_for(lambda: not servers(done.pid))
