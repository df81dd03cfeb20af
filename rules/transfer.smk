# Does one model's forgetting predict another's?
rule transfer:
    """Predicts the rows of each model from those of every other model."""
    input:
        matrices=FILES.of_models("Z.parquet"),
    output:
        scores=listed_table(f"{RESULTS}/transfer.csv", PREDICTED),
    log:
        f"{LOGS}/transfer.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        models=MODELS,
        tasks=TASKS,
        transfer=SETTINGS.transfer.model_dump(mode="json"),
    script:
        "../workflow_scripts/transfer.py"
