checkpoint data:
    input:
        key=key("data"),
    output:
        manifest=f"data/{SCALE}/{{dataset}}/manifest.json",
        preview=f"data/{SCALE}/{{dataset}}/preview.png",
        timing=f"results/{SCALE}/timing/data/{{dataset}}.json",
    log:
        f"logs/{SCALE}/data/{{dataset}}.log",
    conda:
        "../../environment.yml"
    threads: 2
    params:
        choice=CHOICE,
    shell:
        "vpd data {wildcards.dataset:q} {params.choice} 2>&1 | tee {log}"
