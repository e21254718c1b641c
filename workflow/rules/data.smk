checkpoint data:
    input:
        key=key("data"),
    output:
        manifest=f"data/{SCALE}/{{dataset}}/manifest.json",
        preview=report(
            f"data/{SCALE}/{{dataset}}/preview.png",
            caption="../captions/preview.rst",
            category="Datasets",
            labels={"dataset": "{dataset}"},
        ),
        timing=f"results/{SCALE}/timing/data/{{dataset}}.json",
    log:
        f"logs/{SCALE}/data/{{dataset}}.log",
    threads: 2
    params:
        choice=CHOICE,
    shell:
        "vpd data {wildcards.dataset:q} {params.choice} 2>&1 | tee {log}"
