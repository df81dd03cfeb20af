# Replay: fine-tunes that mix in the examples a strategy draws, judged on held-out examples.

from lethe.replay.planned_contrasts import decision_sentence, primary_run

REPLAY_RECIPE = TASK_RECIPE
if any(run.recipe_changes for run in FILES.replay_settings.values()):
    REPLAY_RECIPE = lambda wildcards: PARAMETERS.replay_recipe(
        wildcards.model, wildcards.task, wildcards.strategy
    )

# With too few tasks no result can be significant: better to know before the run.
DECISION = decision_sentence(SETTINGS.replay, EXPERIMENT.tasks)
if workflow.is_main_process and DECISION:
    logger.info(DECISION)


if FILES.gathers_training_rows:

    rule gather_training_rows:
        """Gathers the rows that others are predicted from; Z has those of the test tasks, too."""
        input:
            rows=lambda wildcards: FILES.files_of_training_rows(wildcards.model),
        output:
            training_rows=FILES.training_rows("{model}"),
        log:
            f"{LOGS}/gather_training_rows/{{model}}.log",
        conda:
            "../envs/analysis.yaml"
        resources:
            **MACHINE.analysis(),
        params:
            tasks=EXPERIMENT.names("train"),
            mixed_machines=SETTINGS.allow_mixed_machines,
            recipe=RECIPE,
            scoring=SCORING,
        script:
            "../workflow_scripts/gather_training_rows.py"


rule predict_row:
    """Predicts the forgetting by a test task by one method, from a few probed examples."""
    input:
        training_rows=FILES.training_rows("{model}"),
        row=f"{RESULTS}/{{model}}/rows/{{task}}.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
        sibling=lambda wildcards: FILES.prediction_sibling(
            wildcards.model, wildcards.method
        ),
    output:
        prediction=FILES.prediction("{model}", "{method}", "{task}"),
    log:
        f"{LOGS}/predict_row/{{model}}/{{method}}/{{task}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        training_tasks=lambda wildcards: PARAMETERS.training_tasks(wildcards.task),
        options=lambda wildcards: PARAMETERS.method_options(wildcards.method),
        probes=lambda wildcards: PARAMETERS.probes_read(wildcards.method),
        choice=SETTINGS.replay.probe_choice,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/predict_row.py"


rule replay_run:
    """Fine-tunes a model on one test task with replay by one strategy, and measures forgetting."""
    input:
        **FINE_TUNE,
        upstream=f"{RESULTS}/upstream.parquet",
        scores=lambda wildcards: FILES.replay_scores(
            wildcards.model, wildcards.strategy, wildcards.task
        ),
        training_rows=lambda wildcards: FILES.replay_training_rows(
            wildcards.model, wildcards.strategy
        ),
        gradients=lambda wildcards: FILES.replay_gradients(
            wildcards.model, wildcards.strategy
        ),
        measured=lambda wildcards: FILES.replay_equal_row(
            wildcards.model, wildcards.strategy, wildcards.task, wildcards.seed
        ),
    output:
        run=f"{RESULTS}/{{model}}/replay/{{strategy}}/{{task}}-seed{{seed}}.parquet",
    log:
        f"{LOGS}/replay_run/{{model}}/{{strategy}}/{{task}}-seed{{seed}}.log",
    group:
        RUNS_TOGETHER
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL_ROW,
    params:
        recipe=REPLAY_RECIPE,
        scoring=SCORING,
        replay=lambda wildcards: PARAMETERS.replay(wildcards.strategy, wildcards.task),
        checkpoint=unfinished,
    script:
        "../workflow_scripts/replay_run.py"


rule gather_replay:
    """Gathers the replay runs of a model, compares them, and tests the planned comparisons."""
    input:
        runs=lambda wildcards: FILES.replay_runs(wildcards.model),
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        **listed_tables(FILES.replay_tests(f"{RESULTS}/{{model}}"), PREVENTED),
        runs=listed_table(f"{RESULTS}/{{model}}/replay.csv", PREVENTED),
        comparison=listed_table(f"{RESULTS}/{{model}}/replay_comparison.csv", PREVENTED),
    log:
        f"{LOGS}/gather_replay/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        contrasts=PARAMETERS.contrasts(),
        frontiers=PARAMETERS.frontiers(),
        # No script reads it. The tables list the runs in this order, and Snakemake does not see
        # that the order of the inputs has changed.
        order=list(FILES.replay_settings),
        # Not recorded (rules/common.smk): it follows from the settings of the runs.
        compared=lambda wildcards, input: PARAMETERS.runs_by_frontier(),
        noise_floor=SETTINGS.replay.noise_floor,
        mixed_machines=SETTINGS.allow_mixed_machines,
    script:
        "../workflow_scripts/gather_replay.py"


if FILES.advises:

    rule advise_replay:
        """Advises for each task which replay run to take, from the others' runs, and scores that."""
        input:
            runs=f"{RESULTS}/{{model}}/replay.csv",
            matrix=f"{RESULTS}/{{model}}/Z.parquet",
            predictions=lambda wildcards: FILES.predictions(
                wildcards.model, SETTINGS.replay.prediction
            ),
            upstream=f"{RESULTS}/upstream.parquet",
        output:
            advice=listed_table(f"{RESULTS}/{{model}}/replay_advice.csv", PREVENTED),
            score=listed_table(
                f"{RESULTS}/{{model}}/replay_advice_score.csv", PREVENTED
            ),
        log:
            f"{LOGS}/advise_replay/{{model}}.log",
        conda:
            "../envs/analysis.yaml"
        resources:
            **MACHINE.analysis(),
        params:
            runs=PARAMETERS.advised_runs(),
            trades=SETTINGS.replay.advise.trade,
            primary=primary_run(SETTINGS.replay),
        script:
            "../workflow_scripts/advise_replay.py"
