localrules:
    fetch_package,


rule fetch_package:
    output:
        temp(f"{CACHE}/{{package}}"),
    log:
        f"{LOGS}/fetch_package/{{package}}.log",
    wildcard_constraints:
        package=one_of(PACKAGES),
    conda:
        "../envs/data.yaml"
    params:
        sha256=package_hash,
    script:
        "../workflow_scripts/fetch_package.py"


rule extract_bigbench:
    input:
        package=f"{CACHE}/bigbench-{{version}}.tar.gz",
    output:
        archive=protected(f"{CACHE}/bigbench-{{version}}.zip"),
    log:
        f"{LOGS}/extract_bigbench/{{version}}.log",
    wildcard_constraints:
        version=r"[\d.]+",
    conda:
        "../envs/data.yaml"
    script:
        "../workflow_scripts/extract_bigbench.py"


rule prepare_upstream:
    input:
        upstream_files,
    output:
        upstream=f"{RESULTS}/upstream.parquet",
        corpus=f"{RESULTS}/corpus.parquet",
    log:
        f"{LOGS}/prepare_upstream.log",
    conda:
        "../envs/data.yaml"
    params:
        domains={domain: source_of(text) for domain, text in DOMAINS.items()},
        upstream=SETTINGS.upstream
        and SETTINGS.upstream.model_dump(mode="json", exclude={"domains"}),
        archive=archive_of(DOMAINS.values()),
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_upstream.py"


rule prepare_task:
    input:
        task_files,
    output:
        train=f"{RESULTS}/tasks/{{task}}/train.parquet",
        evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
    log:
        f"{LOGS}/prepare_task/{{task}}.log",
    conda:
        "../envs/data.yaml"
    params:
        source=task_source,
        archive=task_archive,
        counts=SETTINGS.task_examples.model_dump(mode="json"),
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_task.py"
