"""Two Unix users of one group who make the same folder, one after the other: needs root, to be both of them."""

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, exclusive

pytestmark = pytest.mark.cluster

ANNA, BEN, GROUP = 50_001, 50_002, 50_003


@pytest.fixture
def shared():
    """A folder as docs/group.md has it made; elsewhere than tmp_path, which belongs to one user only."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        folder = Path(root, "shared")
        folder.mkdir()
        os.chown(folder, ANNA, GROUP)
        folder.chmod(0o2775)
        yield folder


def make(out: Path, maker: str, die: bool = False) -> None:
    with exclusive(out), atomic_folder(out) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/maker").write_text(maker)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)


def as_user(user: int, *arguments) -> int:
    """Exit code of ``make`` in a process of ``user``, who belongs to GROUP."""

    def work():
        os.setgroups([GROUP])
        os.setgid(user)
        os.setuid(user)
        os.umask(0o002)
        try:
            make(*arguments)
        except UserError as error:
            sys.exit(str(error))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def test_what_one_began_or_finished_another_can_make_again(shared):
    out = shared / "out"
    assert as_user(ANNA, out, "anna", True) == -signal.SIGKILL
    assert not out.exists()
    for user, name in ((BEN, "ben"), (ANNA, "anna"), (BEN, "ben again"), (BEN, "ben again")):
        assert as_user(user, out, name) == 0
        assert (out / "deep/maker").read_text() == name
        assert sorted(os.listdir(shared)) == [".out.lock", "out"]


def test_who_is_not_of_the_group_gets_one_sentence_and_spoils_nothing(shared, capfd):
    out = shared / "out"
    assert as_user(ANNA, out, "anna") == 0
    os.chown(shared, ANNA, ANNA)
    assert as_user(BEN, out, "ben") == 1
    assert capfd.readouterr().err == f"cannot write {out}: Permission denied; free some space or fix the permissions\n"
    assert (out / "deep/maker").read_text() == "anna"
