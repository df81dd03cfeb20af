rule draw_plots:
    input:
        matrices=tables("Z.parquet"),
        curves=tables("rank_curve.csv"),
        completions=tables("completion.csv"),
        summaries=tables("rows.csv") if MODELS else [],
        comparisons=tables("replay_comparison.csv") if STRATEGIES else [],
        noise=tables("noise.json") if NOISE else [],
        upstream=f"{RESULTS}/upstream.parquet" if MODELS else [],
    output:
        report(
            expand(f"{RESULTS}/plots/{{name}}.png", name=FIGURES),
            caption="../report/figure.rst",
            category="Figures",
        ),
        expand(f"{RESULTS}/plots/{{name}}.svg", name=FIGURES),
    log:
        f"{LOGS}/draw_plots.log",
    conda:
        "../envs/analysis.yaml"
    params:
        figures=FIGURES,
        models=MATRICES,
        tasks=task_table(),
    script:
        "../workflow_scripts/draw_plots.py"


rule write_report:
    input:
        matrices=tables("Z.parquet"),
        curves=tables("rank_curve.csv"),
        completions=tables("completion.csv"),
        summaries=tables("rows.csv") if MODELS else [],
        comparisons=tables("replay_comparison.csv") if STRATEGIES else [],
        noise=tables("noise.json") if NOISE else [],
        runs=tables("replay.csv") if STRATEGIES else [],
        sanity=[] if MODELS else tables("sanity.json"),
        associations=association_tables(),
        transfer=TRANSFER,
        upstream=f"{RESULTS}/upstream.parquet" if MODELS else [],
        figures=expand(f"{RESULTS}/plots/{{name}}.png", name=FIGURES),
    output:
        page=report(
            f"{RESULTS}/report.html", caption="../report/page.rst", category="Report"
        ),
    log:
        f"{LOGS}/write_report.log",
    conda:
        "../envs/analysis.yaml"
    params:
        figures=FIGURES,
        models=MATRICES,
        tasks=task_table(),
        settings=SETTINGS.model_dump(mode="json", exclude={"tasks"}),
    script:
        "../workflow_scripts/write_report.py"
