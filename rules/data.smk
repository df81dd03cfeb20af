# Examples: packages are fetched once, upstream examples and tasks are drawn from them.
# Packages lie in the cache, which several runs may share. These rules make sure that the cache
# holds them, at the place where Snakemake runs, because compute nodes often have no network. A job
# that needs a package looks into the cache itself, and makes it again if the cache was emptied.
localrules:
    fetch_package,
    extract_bigbench,


# Snakemake runs every job again that reads a missing file, so the records of packages stay.
if workflow.is_main_process:
    SOURCES.restore_records()


rule fetch_package:
    """Fetches a package's file into the cache, unless it is there and has the right hash."""
    output:
        record=SOURCES.record("{package}"),
    log:
        f"{LOGS}/fetch_package/{{package}}.log",
    wildcard_constraints:
        package=pattern_of(SOURCES.wheels),
    conda:
        "../envs/data.yaml"
    params:
        # Not recorded (rules/common.smk).
        package=lambda wildcards, output: SOURCES.wheels[wildcards.package],
        cache=lambda wildcards, output: CACHE,
    script:
        "../workflow_scripts/fetch_package.py"


rule extract_bigbench:
    """Makes a zip of BIG-bench's examples in the cache, unless it is there and has its hash."""
    output:
        record=SOURCES.record("{extract}"),
    log:
        f"{LOGS}/extract_bigbench/{{extract}}.log",
    wildcard_constraints:
        extract=pattern_of(SOURCES.bigbench_packages),
    conda:
        "../envs/data.yaml"
    params:
        # Not recorded (rules/common.smk).
        package=lambda wildcards, output: SOURCES.bigbench_packages[wildcards.extract],
        cache=lambda wildcards, output: CACHE,
    script:
        "../workflow_scripts/extract_bigbench.py"


# Looking at the cache again makes no result outdated (`ancient`); editing a file of yours does.
rule prepare_upstream:
    """Draws the upstream examples, and the pretraining corpus around them, from the domains."""
    input:
        archives=ancient(SOURCES.upstream_records()),
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
        # No script reads it. Finished runs have it in their records and would run again without it.
        archive=SOURCES.upstream_extract(),
        # Not recorded (rules/common.smk).
        cache=lambda wildcards, input: CACHE,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_upstream.py"


rule prepare_task:
    """Draws the training and evaluation examples of one task from its source."""
    input:
        archives=ancient(lambda wildcards: SOURCES.task_records(wildcards.task)),
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
        # As above, in prepare_upstream.
        archive=lambda wildcards: SOURCES.task_extract(wildcards.task),
        # Not recorded (rules/common.smk).
        cache=lambda wildcards, input: CACHE,
        counts=SETTINGS.task_examples.model_dump(mode="json"),
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/prepare_task.py"
