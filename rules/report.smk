# The report: figures, and one page that holds everything.
rule draw_plots:
    """Draws every figure of the report, as PNG and as SVG."""
    input:
        **FILES.figure_tables(),
    output:
        png=report(
            FILES.plots("png"), caption="../report/figure.rst", category="Figures"
        ),
        svg=FILES.plots("svg"),
    log:
        f"{LOGS}/draw_plots.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        figures=FILES.figures,
        models=FILES.models,
        tasks=TASKS,
    script:
        "../workflow_scripts/draw_plots.py"


rule write_report:
    """Writes the experiment's page out of all tables and figures; it needs no other file."""
    input:
        **FILES.report_tables(),
        figures=FILES.plots("png"),
    output:
        **FILES.left_out,
        page=report(
            f"{RESULTS}/report.html", caption="../report/page.rst", category="Report"
        ),
    log:
        f"{LOGS}/write_report.log",
    conda:
        "../envs/analysis.yaml"
    resources:
        **MACHINE.analysis(),
    params:
        **PARAMETERS.left_out(),
        figures=FILES.figures,
        models=FILES.models,
        tasks=TASKS,
        settings=PARAMETERS.settings(),
        # No inputs, because rows of an older version have no such files.
        token_files=FILES.token_files(),
    script:
        "../workflow_scripts/write_report.py"
