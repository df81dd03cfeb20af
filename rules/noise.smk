# Which part of Z is noise? A few fine-tunes are repeated.
rule repeat_row:
    """Repeats one fine-tune with another seed, and scores its weights several times."""
    input:
        **FINE_TUNE,
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        f"{RESULTS}/{{model}}/repeats/{{task}}-seed{{seed}}.parquet",
        expand(
            f"{RESULTS}/{{{{model}}}}/repeats/{{{{task}}}}-seed{{{{seed}}}}-again{{i}}.parquet",
            i=range(1, SETTINGS.noise.measurements + 1),
        ),
    log:
        f"{LOGS}/repeat_row/{{model}}/{{task}}-seed{{seed}}.log",
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL,
    params:
        recipe=TASK_RECIPE,
        scoring=SCORING,
    script:
        "../workflow_scripts/repeat_row.py"


rule noise_floor:
    """Estimates the noise of Z from the repeats, and how many factors stand above it."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        rows=lambda wildcards: FILES.repeated_rows(wildcards.model),
        repeats=lambda wildcards: FILES.repeats(wildcards.model),
    output:
        noise=f"{RESULTS}/{{model}}/noise.json",
        columns=f"{RESULTS}/{{model}}/noise.parquet",
    log:
        f"{LOGS}/noise_floor/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        tasks=SETTINGS.noise.tasks,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/noise_floor.py"
