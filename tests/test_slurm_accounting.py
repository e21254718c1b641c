"""The Slurm profile where jobs are charged to accounts, on a real Slurm with slurmdbd and MariaDB."""

import pytest

from slurm_lab import ACCOUNT, output, slurm
from test_reproduce import copy_of_project, run

pytestmark = pytest.mark.cluster

TARGET = "data/smoke/nyuv2/manifest.json"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm"), accounting=True) as found:
        yield found


def test_the_account_of_the_profile_is_charged_for_jobs_and_gpus(lab, tmp_path):
    folder = copy_of_project(tmp_path)
    profile = folder / "profiles/slurm/config.yaml"
    text = profile.read_text()
    assert "# slurm_account: mygroup" in text
    assert "slurm-status-command: squeue" in text
    # As docs/slurm.md says.
    text = text.replace("# slurm_account: mygroup", f"slurm_account: {ACCOUNT}")
    profile.write_text(text.replace("slurm-status-command: squeue", ""))
    run(f"snakemake --profile profiles/slurm --set-resources data:gpu=2 -- {TARGET}", folder)
    assert (folder / TARGET).is_file()
    said = output("sacct", "--noheader", "--parsable2", "--allocations", "--format=Account,State,AllocTRES")
    (job,) = said.splitlines()
    account, state, allocated = job.split("|")
    assert (account, state) == (ACCOUNT, "COMPLETED")
    assert "gres/gpu=2" in allocated
