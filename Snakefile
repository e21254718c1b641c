# The same graph as dvc.yaml, for `snakemake --cores N` on one machine or on a cluster. The matrix is params.yaml.
# After a run, `make record` tells DVC about the results, so that `dvc repro` has nothing left to do.
from snakemake.utils import min_version

min_version("9.6")


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        f"results/{SCALE}/REPORT.md",
        f".vpd/{SCALE}/tracked.json",
        # Also those that no experiment uses, as `dvc repro` makes them: `make record` looks for all.
        expand(rules.checkpoint.output.manifest, checkpoint=PARAMS.checkpoints),
