# The same graph as dvc.yaml, for `snakemake --cores N` on one machine or a cluster. The experiments are those of params.yaml.
# After a run, `make record` tells DVC about the results, so that `dvc repro` has nothing left to do.
from snakemake.utils import min_version

from vpd.planning.plan import meanings

min_version("9.6")


report: "workflow/captions/workflow.rst"


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
        # Also the checkpoints that no experiment uses, because `dvc repro` makes them and `make record` expects all.
        expand(rules.checkpoint.output.manifest, checkpoint=PARAMS.checkpoints),
        rules.ship.output.timing,


# Words of `vpd plan` as targets (snakemake -- table5): evaluations alone, because the report needs those of all experiments.
for word, names in meanings(PARAMS).items():
    if names and word not in names:

        rule:
            name:
                word
            input:
                expand(rules.evaluate.output.metrics, name=sorted(names)),
