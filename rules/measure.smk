# Forgetting is measured: losses before, one fine-tune per task, and the rows gathered into Z.
ROW_OUTPUTS = {"row": f"{RESULTS}/{{model}}/rows/{{task}}.parquet"}
if SETTINGS.recipe.keep_weights:
    ROW_OUTPUTS["weights"] = directory(f"{RESULTS}/{{model}}/weights/{{task}}")
if SETTINGS.prediction_changes:
    ROW_OUTPUTS["changes"] = f"{RESULTS}/{{model}}/prediction_changes/{{task}}.parquet"


rule score_base:
    """Scores every upstream example with the untouched base model: the losses before."""
    input:
        card=f"{RESULTS}/{{model}}/model.json",
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        base=f"{RESULTS}/{{model}}/base.parquet",
    log:
        f"{LOGS}/score_base/{{model}}.log",
    conda:
        "../envs/train.yaml"
    threads: THREADS
    resources:
        **ON_MODEL,
    params:
        scoring=SCORING,
        checkpoint=unfinished,
    script:
        "../workflow_scripts/score_base.py"


rule measure_row:
    """Fine-tunes a model on one task and measures what every upstream example lost: a row of Z."""
    input:
        **FINE_TUNE,
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        **ROW_OUTPUTS,
    log:
        f"{LOGS}/measure_row/{{model}}/{{task}}.log",
    # Rows come before replay runs, because replay by prediction waits for Z.
    priority: 5
    group:
        ROWS_TOGETHER
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL_ROW,
    params:
        recipe=TASK_RECIPE,
        scoring=SCORING,
        checkpoint=unfinished,
        # Not recorded (rules/common.smk): rows of an older version
        # have no such file, and stay up to date.
        tokens=lambda wildcards, output: FILES.tokens_of_row(output.row),
    script:
        "../workflow_scripts/measure_row.py"


rule gather_matrix:
    """Gathers the rows of a model into Z, and checks that they belong together."""
    input:
        rows=lambda wildcards: FILES.rows(wildcards.model),
    output:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        summaries=listed_table(f"{RESULTS}/{{model}}/rows.csv", FORGOTTEN),
    log:
        f"{LOGS}/gather_matrix/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        tasks=TASKS,
        mixed_machines=SETTINGS.allow_mixed_machines,
        recipe=RECIPE,
        scoring=SCORING,
    script:
        "../workflow_scripts/gather_matrix.py"


rule gather_prediction_changes:
    """Gathers how the rows of a model changed its predictions, and compares that with Z."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        changes=lambda wildcards: FILES.prediction_changes(wildcards.model),
    output:
        **FILES.finer_matrices(f"{RESULTS}/{{model}}"),
        table=listed_table(f"{RESULTS}/{{model}}/prediction_changes.csv", FORGOTTEN),
    log:
        f"{LOGS}/gather_prediction_changes/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        tasks=list(EXPERIMENT.tasks),
    script:
        "../workflow_scripts/gather_prediction_changes.py"
