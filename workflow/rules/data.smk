rule data:
    input:
        code("datasets", "world", "download"),
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
        scale=SCALE,
        archives="downloads/archives",
        out=lambda wildcards, output: folder(output.manifest),
        spec=lambda wildcards: PARAMS.dataset(wildcards.dataset).model_dump_json(),
    shell:
        "vpd data {wildcards.dataset} --scale {params.scale} --archives {params.archives} --out {params.out}"
        " --timing {output.timing} 2>&1 | tee {log}"
