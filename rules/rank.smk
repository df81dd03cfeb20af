# Is Z of low rank?
rule rank_curve:
    """Computes the share of Z that factors explain, by rank."""
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
    output:
        curve=listed_table(f"{RESULTS}/{{model}}/rank_curve.csv", FORGOTTEN),
    log:
        f"{LOGS}/rank_curve/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    script:
        "../workflow_scripts/rank_curve.py"
