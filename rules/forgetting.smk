rule score_base:
    input:
        card=f"{RESULTS}/{{model}}/model.json",
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        base=f"{RESULTS}/{{model}}/base.parquet",
    log:
        f"{LOGS}/score_base/{{model}}.log",
    conda:
        "../envs/train.yaml"
    threads: same_for_all(model_threads)
    resources:
        gpu=same_for_all(gpus),
        mem_mb=memory,
        halvings=halvings,
        runtime=minutes,
        slurm_partition=same_for_all(partition),
    params:
        scoring=SCORING,
    script:
        "../workflow_scripts/score_base.py"


rule measure_row:
    input:
        card=f"{RESULTS}/{{model}}/model.json",
        base=f"{RESULTS}/{{model}}/base.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
        train=f"{RESULTS}/tasks/{{task}}/train.parquet",
        evaluation=f"{RESULTS}/tasks/{{task}}/eval.parquet",
    output:
        row=f"{RESULTS}/{{model}}/rows/{{task}}.parquet",
    log:
        f"{LOGS}/measure_row/{{model}}/{{task}}.log",
    # Z first: replay waits for it anyway.
    priority: 5
    group:
        ROWS_TOGETHER
    conda:
        "../envs/train.yaml"
    threads: same_for_all(job_threads)
    resources:
        gpu=same_for_all(gpus),
        mem_mb=memory,
        halvings=halvings,
        runtime=row_minutes,
        slurm_partition=same_for_all(partition),
        turn=1,
    params:
        recipe=TASK_RECIPE,
        scoring=SCORING,
    script:
        "../workflow_scripts/measure_row.py"


rule gather_matrix:
    input:
        rows=row_files,
    output:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        summaries=f"{RESULTS}/{{model}}/rows.csv",
    log:
        f"{LOGS}/gather_matrix/{{model}}.log",
    wildcard_constraints:
        model=one_of(MODELS),
    conda:
        "../envs/analysis.yaml"
    params:
        tasks=task_table(),
        mixed_machines=SETTINGS.allow_mixed_machines,
        recipe=same_for_all(recipe),
        scoring=SCORING,
    script:
        "../workflow_scripts/gather_matrix.py"


rule import_matrix:
    input:
        own=own_matrix,
        meta=row_names,
        examples=(SETTINGS.matrix and SETTINGS.matrix.examples) or [],
    output:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        sanity=f"{RESULTS}/{{model}}/sanity.json",
    log:
        f"{LOGS}/import_matrix/{{model}}.log",
    wildcard_constraints:
        model=one_of([] if MODELS else MATRICES),
    conda:
        "../envs/analysis.yaml"
    params:
        tasks=list(EXPERIMENT.tasks),
        layout=SETTINGS.matrix and SETTINGS.matrix.layout,
    script:
        "../workflow_scripts/import_matrix.py"
