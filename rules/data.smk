# Examples: packages are fetched once, upstream examples and tasks are drawn from them.
localrules:
    fetch_package,


rule fetch_package:
    """Fetches one file of a PyPI package into the cache and checks its hash."""
    output:
        package=temp(f"{CACHE}/{{package}}"),
    log:
        f"{LOGS}/fetch_package/{{package}}.log",
    wildcard_constraints:
        package=pattern_of(SOURCES.packages),
    conda:
        "../envs/data.yaml"
    params:
        # Follows from the output, so that Snakemake does not record it.
        requirement=lambda wildcards, output: SOURCES.requirement(wildcards.package),
        sha256=lambda wildcards: SOURCES.packages[wildcards.package].sha256,
    script:
        "../workflow_scripts/fetch_package.py"


rule extract_bigbench:
    """Extracts the files that hold examples from the BIG-bench package into a zip archive."""
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


# Fetching the cache again makes no result outdated (`ancient`); editing a file of yours does.
rule prepare_upstream:
    """Draws the upstream examples, and the pretraining corpus around them, from the domains."""
    input:
        archives=ancient(SOURCES.upstream_archives()),
        files=SOURCES.upstream_files(),
    output:
        upstream=f"{RESULTS}/upstream.parquet",
        corpus=f"{RESULTS}/corpus.parquet",
    log:
        f"{LOGS}/prepare_upstream.log",
    conda:
        "../envs/data.yaml"
    params:
        domains=PARAMETERS.domains(),
        upstream=SETTINGS.upstream.model_dump(mode="json", exclude={"domains"}),
        archive=lambda wildcards: SOURCES.upstream_archive(),
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_upstream.py"


rule prepare_task:
    """Draws the training and evaluation examples of one task from its source."""
    input:
        archives=ancient(lambda wildcards: SOURCES.task_archives(wildcards.task)),
        files=lambda wildcards: SOURCES.task_files(wildcards.task),
    output:
        train=f"{RESULTS}/tasks/{{task}}/train.parquet",
        evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
    log:
        f"{LOGS}/prepare_task/{{task}}.log",
    conda:
        "../envs/data.yaml"
    params:
        source=lambda wildcards: PARAMETERS.task_source(wildcards.task),
        archive=lambda wildcards: SOURCES.task_archive(wildcards.task),
        counts=SETTINGS.task_examples.model_dump(mode="json"),
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_task.py"
