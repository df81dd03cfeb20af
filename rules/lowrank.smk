rule rank_curve:
    input:
        matrix=f"{RESULTS}/{{model}}/Z.parquet",
    output:
        curve=f"{RESULTS}/{{model}}/rank_curve.csv",
    log:
        f"{LOGS}/rank_curve/{{model}}.log",
    conda:
        "../envs/analysis.yaml"
    script:
        "../workflow_scripts/rank_curve.py"
