"""Memory, disk, processes and rights run out: the command ends with a sentence, and a fault of vpd with a log of its own."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from forked import impatient, status_of
from vpd import cli
from vpd.datasets.images import save_jpeg, save_png
from vpd.evaluation.run import load_samples
from vpd.training.loader import Plan, micro_batches
from vpd.utils.errors import UserError, curable
from vpd.utils.files import atomic_folder, atomic_path
from vpd.utils.processes import side_by_side
from vpd.utils.progress import Progress
from vpd.utils.tensors import load_folder

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------------------------------------------- what was it
def chained(outer: Exception, inner: Exception) -> Exception:
    """One error raised while another was handled, as libraries do."""
    try:
        try:
            raise inner
        except Exception:
            raise outer  # noqa: B904
    except Exception as error:
        return error


def raised(function, *arguments) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


FULL = OSError(errno.ENOSPC, "No space left on device", "a.pt")
CAUSES = {
    "a list too long": (partial(raised, lambda: [0] * 2**60), "the memory is full"),
    "an array too large": (partial(raised, np.empty, 2**50), "the memory is full"),
    "a tensor too large": (partial(raised, torch.empty, 2**50), "the memory is full"),
    "CUDA": (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory is full"),
    "behind a library": (lambda: chained(OSError("Unable to load weights"), MemoryError()), "the memory is full"),
    "a mapping": (lambda: RuntimeError("unable to mmap 99 bytes: Cannot allocate memory (12)"), "the memory is full"),
    "a library": (lambda: ImportError("libtorch_cpu.so: failed to map segment from shared object"), "the memory is full"),
    "another process": (partial(raised, side_by_side, os._exit, [(9,), (9,)], 2), "was killed, mostly because memory"),
    "a full disk": (lambda: FULL, r"cannot write a\.pt: No space left on device; free some space"),
    "a quota": (lambda: OSError(errno.EDQUOT, "Disk quota exceeded", "b"), "cannot write b: Disk quota exceeded"),
    "behind torch": (lambda: chained(RuntimeError("unexpected pos 64 vs 0"), FULL), "No space left on device"),
    "safetensors": (lambda: RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
    "no rights": (partial(raised, Path("/proc/1/mem").write_text, "x"), None),
    "a folder": (partial(raised, Path("/").write_text, "x"), "cannot use /: Is a directory; fix"),
    "a long name": (partial(raised, Path("a" * 300).read_text), "File name too long; fix"),
    "a file as folder": (partial(raised, Path("/etc/passwd/x").read_text), "cannot use /etc/passwd/x: Not a directory"),
    "a user": (lambda: UserError("it is so; do this"), "^it is so; do this$"),
    "a fault": (partial(raised, {}.__getitem__, "x"), None),
    "a fault with an odd text": (lambda: ValueError("a\udcff\n\x1b[31m"), None),
    "a fault in numbers": (partial(raised, int, "x"), None),
    "a lost connection": (lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset"), None),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_what_of_the_machine_ended_a_command_is_said(cause, capsys, monkeypatch, tmp_path):
    make, said = CAUSES[cause]
    error = make()
    if cause == "no rights":
        said = "cannot use /proc/1/mem: " if isinstance(error, PermissionError) else None
    if said is None:
        assert curable(error) is None

    def show(options) -> None:
        raise error

    monkeypatch.setattr(cli, "_show", show)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".vpd").mkdir()
    assert cli.main(["show"]) == (1 if said is None else 2)
    line = capsys.readouterr().err
    assert line.startswith("vpd: ")
    assert line.count("\n") == 1
    if said is None:
        log = Path(line.rpartition(" is in ")[2].strip())
        assert "this is a fault of vpd" in line
        assert f"\n{type(error).__name__}: " in log.read_text()
    else:
        assert re.search(said, line.removeprefix("vpd: ").strip())


def test_a_library_that_lacks_memory_does_not_blame_the_folder(tmp_path):
    with pytest.raises(UserError, match="the memory is full"), load_folder(tmp_path):
        raise chained(OSError("Unable to load weights from checkpoint file"), MemoryError())
    with pytest.raises(UserError, match=r"is damaged or cut off \(size mismatch\)"), load_folder(tmp_path):
        raise RuntimeError("size mismatch")


# ------------------------------------------------------------------------------------------------------------- the disk
def _archive(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(100_000))


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch": lambda path: torch.save({"a": torch.zeros(100_000)}, path),
    "torch, many": lambda path: torch.save({str(n): torch.zeros(999) for n in range(99)}, path),
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "numpy": _archive,
    "JPEG": lambda path: save_jpeg(
        path.with_suffix(".jpg"), np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    ),
    "PNG": lambda path: save_png(
        path.with_suffix(".png"), np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("limit", [0, 5000, 70_000])
def test_a_full_disk_is_a_sentence_whoever_writes(tmp_path, writer, limit):
    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with (
            pytest.raises(
                UserError, match=r"^cannot write .*(File too large|No space left on device); free some space"
            ),
            atomic_path(tmp_path / "a.bin") as path,
        ):
            WRITERS[writer](path)
        with pytest.raises(UserError, match="free some space"), atomic_folder(tmp_path / "out") as folder:
            WRITERS[writer](folder / "a.bin")

    assert status_of(write) == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".npz", ".jpg", ".png")] == []


# ----------------------------------------------------------------------------------------------------- loader processes
class Samples:
    """A dataset whose fourth sample ends badly."""

    def __init__(self, end) -> None:
        self.end = end

    def __len__(self) -> int:
        return 16

    def sample(self, index: int, epoch: int = 0) -> dict:
        if index == 3:
            self.end()
        return {"image": torch.zeros(3, 64, 64), "id": str(index)}


def _no_shared_memory() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def train(dataset: Samples) -> None:
    for _ in micro_batches(dataset, Plan(16, 4, 1, True, 0), 0, 4, 2):
        pass


def evaluate(dataset: Samples) -> None:
    for _ in load_samples(dataset, 2, Progress(16, "x", enabled=False), ""):
        pass


@pytest.mark.parametrize("use", [train, evaluate])
@pytest.mark.parametrize("end", [_no_shared_memory, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_a_loader_process_that_dies_or_cannot_send_ends_the_command(use, end):
    def command() -> None:
        with pytest.raises((RuntimeError, EOFError, OSError)) as caught:  # the last two if it dies while it sends
            use(Samples(end))
        assert "was killed, mostly because memory ran out; free memory and shared memory" in curable(caught.value)
        os._exit(0)  # the other loader process would go on until a step has ended

    with impatient(60):
        assert status_of(command) == 0  # elsewhere, since torch raises an error in whatever runs when a process is lost


# ------------------------------------------------------------------------------------------------------- the environment
SURROUNDINGS = """
import json, sys
from pathlib import Path
from vpd.cli import main, parser
assert main(["show", "seg-fast", "--scale", "smoke"]) == 0
import matplotlib.figure
from vpd.config.params import load_params
from vpd.stages.training import workers
assert workers(load_params("params.yaml", "smoke").resolve("seg-fast"), 3) >= 1
print(json.dumps(parser().parse_args(["predict", "x", "y", "--text", sys.argv[1]]).text))
print("\\u2260")
"""


LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("changes", [{"LC_ALL": "C"}, LATIN | {"PYTHONIOENCODING": "ascii"}])
def test_odd_surroundings_disturb_nothing(changes):
    odd = {"OMP_NUM_THREADS": "²", "MPLBACKEND": "nonsense", **changes}
    done = subprocess.run(
        [sys.executable, "-c", SURROUNDINGS, "die grüne Tür"],
        cwd=ROOT,
        env=os.environ | odd,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-2]) == "die grüne Tür"
    assert "Traceback" not in done.stderr.decode()


def test_a_text_of_no_encoding_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parser().parse_args(["predict", "x", "y", "--text", "a\udcff"])
    assert end.value.code == 2
    assert "it is not text in UTF-8" in capsys.readouterr().err


KEPT = """
import resource, sys
from pathlib import Path
from vpd.utils.processes import return_freed_memory
if sys.argv[1] == "returned":
    return_freed_memory()
first = bytearray(16 << 20)
del first  # glibc now takes blocks of up to 16 MiB from its heap
blocks = [bytearray(b"x") * (200 << 10) for _ in range(1000)]
last = [bytearray(1000) for _ in range(1000)]  # lie on top of the heap, which cannot shrink
del blocks
print(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20)
"""


def test_freed_memory_is_given_back_only_if_asked_for():
    megabytes = {
        how: int(subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    }
    assert megabytes["kept"] > megabytes["returned"] + 150
