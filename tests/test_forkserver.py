"""Commands that run in a copy of the fork server behave in all respects as if they ran by themselves."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from forked import alive, wait_for

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src"), "PYTEST_CURRENT_TEST": ""}
"""Without the name of the test, with which each would have surroundings of its own."""
WORKFLOW = """\
import os, sys
from vpd.utils import forkserver

print(forkserver.start().pid, os.environ[forkserver.VARIABLE], flush=True)
sys.stdin.read()
"""
COMMAND = """\
import os, signal, sys, time
from vpd.utils import forkserver

status = forkserver.run()
if status is not None:
    sys.exit(status)
copied = "torch" in sys.modules
"""
"""The beginning of a command like `vpd`; what follows it is done by the copy if there is one."""
COMMAND_LINE = """\
import sys
from vpd import cli

cli._stage = lambda options: print("a copy:", "torch" in sys.modules)
sys.exit(cli.main())
"""
"""`vpd` with a stage that does nothing but say where it runs."""


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # A shell starts a job in the background with SIGINT ignored, and the tests may be one; the commands would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=ENVIRONMENT | environment, text=True, **pipes
        )
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """A process that has a server: its folder, the server's id, and what starts a command that does what a program says."""
    folder = tmp_path_factory.mktemp("workflow")
    process = python(folder, "-c", WORKFLOW)
    server, name = process.stdout.readline().strip().split(" ", 1)

    def command(program: str, *arguments: str, **environment: str) -> subprocess.Popen:
        (folder / "command.py").write_text(COMMAND + textwrap.dedent(program))
        return python(folder, "command.py", *arguments, **{"VPD_FORK_SERVER": name, **environment})

    yield SimpleNamespace(folder=folder, process=process, server=int(server), name=name, command=command)
    process.kill()
    process.communicate()


@pytest.fixture
def command(workflow):
    return workflow.command


def test_it_has_the_commands_arguments_files_environment_and_threads(workflow):
    program = """
        import torch
        print(copied, sys.argv[1:], sys.stdin.read(), os.environ["OF_THE_JOB_THREADS"], torch.get_num_threads())
        print(os.getcwd(), len(os.listdir("/proc/self/task")), forkserver.VARIABLE in os.environ)
        print("an error", file=sys.stderr)
    """
    job = workflow.command(program, "--option", "a b", OF_THE_JOB_THREADS="x", OMP_NUM_THREADS="1")
    out, error = job.communicate("text")
    assert out.splitlines() == ["True ['--option', 'a b'] text x 1", f"{workflow.folder} 1 False"]
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
def test_the_command_ends_as_its_copy(command, end, status, message):
    job = command(f"print('not flushed by itself')\nassert copied\n{end}")
    out, error = job.communicate()
    assert job.returncode == status
    assert message in error
    assert "not flushed" in out or status < 0
    assert ("at the end" in out) == ("atexit" in end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_copy(command, number):
    program = f"""
        signal.signal({number}, lambda number, frame: sys.exit(copied + 40))
        print("ready", flush=True)
        time.sleep(60)
    """
    job = command(program)
    assert job.stdout.readline() == "ready\n"
    job.send_signal(number)
    job.communicate()
    assert job.returncode == 41


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_handler_a_signal_ends_both(command, number):
    job = command("print(os.getpid(), flush=True); time.sleep(60)")
    copy = int(job.stdout.readline())
    assert copy != job.pid
    job.send_signal(number)
    job.communicate()
    assert job.returncode == -number
    wait_for(lambda: not alive(copy))


@pytest.mark.parametrize("changes", [{}, {"MPLBACKEND": "nonsense"}])
def test_the_command_line_itself_runs_in_a_copy(workflow, changes):
    """Whatever `vpd` sets before it looks for the server: a job that does not find it is right, and four times as slow."""
    (workflow.folder / "line.py").write_text(COMMAND_LINE)
    job = python(workflow.folder, "line.py", "train", "seg-full", VPD_FORK_SERVER=workflow.name, **changes)
    assert job.communicate()[0] == "a copy: True\n"


def test_code_is_read_when_a_command_starts(workflow):
    for number in ("1", "2"):
        (workflow.folder / "edited.py").write_text(f"NUMBER = {number}\n# {'x' * int(number)}\n")
        job = workflow.command("import edited; print(copied, edited.NUMBER)")
        assert job.communicate()[0] == f"True {number}\n"


@pytest.mark.parametrize(
    "environment",
    [{"HF_HOME": "elsewhere"}, {"VPD_FORK_SERVER": "gone"}, {"VPD_FORK_SERVER": ""}, {"LONG": "x" * 10**5}],
)
def test_in_other_surroundings_or_without_a_server_it_runs_by_itself(command, environment):
    job = command("print(copied, os.getpid())", **environment)
    assert job.communicate()[0] == f"False {job.pid}\n"


def test_a_killed_workflow_leaves_no_process_behind(workflow):
    """The last test of this workflow, which dies by SIGKILL; its server, the copy and the waiting command end, too."""
    job = workflow.command("print(os.getpid(), flush=True); time.sleep(60)")
    processes = [workflow.server, int(job.stdout.readline())]
    assert all(map(alive, processes))
    workflow.process.kill()
    assert "has ended; run it again" in job.communicate()[1]
    wait_for(lambda: not any(map(alive, processes)))


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
    done = subprocess.Popen([sys.executable, "-m", "vpd.cli", "preload", *words], env=ENVIRONMENT)
    assert done.wait() == status
    wait_for(lambda: not servers(done.pid))
