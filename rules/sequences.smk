# Sequences: fine-tunes on one task after the other, each measured against the original base model.


wildcard_constraints:
    order=pattern_of(SETTINGS.sequences.orders),
    run=pattern_of(SETTINGS.sequences.runs),
    step=r"\d+",


SEQUENCE = f"{RESULTS}/{{model}}/sequences/{{order}}/{{run}}/seed{{seed}}"
SEQUENCE_LOG = f"{LOGS}/sequence_step/{{model}}/{{order}}/{{run}}/seed{{seed}}"


rule sequence_step:
    """Fine-tunes on a task of an order, from the weights of the step before, and measures it."""
    input:
        **FINE_TUNE,
        upstream=f"{RESULTS}/upstream.parquet",
        start=lambda wildcards: FILES.sequence_start(
            wildcards.model,
            wildcards.order,
            wildcards.run,
            wildcards.seed,
            number=int(wildcards.step),
        ),
        earlier_evaluation=lambda wildcards: FILES.earlier_examples(
            wildcards.order, int(wildcards.step), "eval.parquet"
        ),
        earlier_training=lambda wildcards: FILES.earlier_training(
            wildcards.order, wildcards.run, int(wildcards.step)
        ),
        scores=lambda wildcards: FILES.sequence_scores(
            wildcards.model, wildcards.run, wildcards.task
        ),
        training_rows=lambda wildcards: FILES.sequence_training_rows(
            wildcards.model, wildcards.run
        ),
        gradients=lambda wildcards: FILES.sequence_gradients(
            wildcards.model, wildcards.run
        ),
    output:
        row=f"{SEQUENCE}/step{{step}}-{{task}}.parquet",
        # Removed as soon as the next step is finished.
        weights=temp(f"{SEQUENCE}/step{{step}}-{{task}}.safetensors"),
    log:
        f"{SEQUENCE_LOG}/step{{step}}-{{task}}.log",
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL_ROW,
    params:
        recipe=lambda wildcards: PARAMETERS.sequence_recipe(
            wildcards.model, wildcards.task, wildcards.run
        ),
        scoring=SCORING,
        step=lambda wildcards: PARAMETERS.sequence_step(
            wildcards.order, wildcards.run, int(wildcards.step)
        ),
        checkpoint=unfinished,
    script:
        "../workflow_scripts/sequence_step.py"


use rule sequence_step as last_step with:
    output:
        row=f"{SEQUENCE}/step{{step}}-{{task}}.parquet",
        # Stays, so that a task can be added to the end of the order.
        weights=f"{SEQUENCE}/step{{step}}-{{task}}.safetensors",
    wildcard_constraints:
        order=FILES.last_step_pattern(),


ruleorder: last_step > sequence_step


rule multitask_row:
    """Fine-tunes once on all tasks of an order mixed: the upper bound of what an order can learn."""
    input:
        card=f"{RESULTS}/{{model}}/model.json",
        base=f"{RESULTS}/{{model}}/base.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
        training=lambda wildcards: FILES.examples_of_order(
            wildcards.order, "train.parquet"
        ),
        evaluation=lambda wildcards: FILES.examples_of_order(
            wildcards.order, "eval.parquet"
        ),
    output:
        row=f"{RESULTS}/{{model}}/sequences/{{order}}/multitask-seed{{seed}}.parquet",
    log:
        f"{LOGS}/multitask_row/{{model}}/{{order}}-seed{{seed}}.log",
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL_ROW,
    params:
        recipe=RECIPE,
        scoring=SCORING,
        multitask=lambda wildcards: PARAMETERS.multitask(wildcards.order),
        checkpoint=unfinished,
    script:
        "../workflow_scripts/multitask_row.py"


rule gather_sequences:
    """Gathers the sequences of a model: their measures, their sum of rows, and predictions."""
    input:
        steps=lambda wildcards: FILES.sequence_rows(wildcards.model),
        multitask=lambda wildcards: FILES.multitask_rows(wildcards.model),
        rows=lambda wildcards: FILES.rows_of_orders(wildcards.model),
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
        upstream=f"{RESULTS}/upstream.parquet",
    output:
        **listed_tables(FILES.sequence_tables(f"{RESULTS}/{{model}}"), IN_SEQUENCES),
    log:
        f"{LOGS}/gather_sequences/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        sequences=PARAMETERS.sequences(),
        noise_floor=SETTINGS.replay and SETTINGS.replay.noise_floor,
        seed=SETTINGS.seed,
    script:
        "../workflow_scripts/gather_sequences.py"
