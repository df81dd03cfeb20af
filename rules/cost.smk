# Cost: `snakemake plan` before a run, `snakemake ledger` after it. Neither is part of `all`.
rule calibrate_model:
    """Times a few steps of training and scoring of a model on this machine."""
    input:
        model=lambda wildcards: FILES.timed_model(wildcards.model),
        upstream=f"{RESULTS}/upstream.parquet",
        train=FILES.tasks("train.parquet"),
        evaluation=FILES.tasks("eval.parquet"),
    output:
        calibration=f"{RESULTS}/{{model}}/calibration.json",
    log:
        f"{LOGS}/calibrate_model/{{model}}.log",
    conda:
        "../envs/train.yaml"
    threads: TRAINING_THREADS
    resources:
        **ON_MODEL,
    params:
        model=lambda wildcards: PARAMETERS.model(wildcards.model),
        recipe=RECIPE,
        scoring=SCORING,
        plan=SETTINGS.plan.model_dump(mode="json", include={"steps", "examples"}),
        # Threads are no trigger of their own, but the speed depends on them.
        machine=value_by_model(PARAMETERS.machine, MODELS),
        # Not recorded (rules/common.smk).
        tasks=lambda wildcards, input: list(EXPERIMENT.tasks),
    script:
        "../workflow_scripts/calibrate_model.py"


rule plan:
    """Estimates how long the experiment will take, and what a new task will cost."""
    input:
        upstream=f"{RESULTS}/upstream.parquet",
        calibrations=FILES.of_models("calibration.json"),
    output:
        plan=listed_table(f"{RESULTS}/plan.csv", COST),
        ways=listed_table(f"{RESULTS}/new_task.csv", COST),
        text=f"{RESULTS}/plan.txt",
    log:
        f"{LOGS}/plan.log",
    conda:
        "../envs/train.yaml"
    params:
        models=PARAMETERS.planned_models(),
        sizes=PARAMETERS.planned_sizes(),
        prices=SETTINGS.plan.model_dump(mode="json", exclude={"steps", "examples"}),
    script:
        "../workflow_scripts/plan.py"


rule ledger:
    """Compares the time and size of the finished jobs with the plan."""
    input:
        plan=f"{RESULTS}/plan.csv",
        rows=FILES.recorded_jobs(),
    output:
        ledger=listed_table(f"{RESULTS}/ledger.csv", COST),
        text=f"{RESULTS}/ledger.txt",
    log:
        f"{LOGS}/ledger.log",
    conda:
        "../envs/train.yaml"
    params:
        # Not recorded (rules/common.smk).
        rows=lambda wildcards, input: FILES.rows_by_rule(),
    script:
        "../workflow_scripts/ledger.py"
