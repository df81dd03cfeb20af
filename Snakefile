from snakemake.utils import min_version

min_version("9.20")

# Another experiment's file, given by --configfile, stands alone instead of being merged over ours.
if not workflow.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/speed.smk"
include: "rules/slurm.smk"
include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/forgetting.smk"
include: "rules/lowrank.smk"
include: "rules/completion.smk"
include: "rules/replay.smk"
include: "rules/report.smk"


if MODELS:

    include: "rules/plan_inputs.smk"
    include: "rules/plan.smk"


if SETTINGS.similarity:

    include: "rules/similarity.smk"


report: "report/workflow.rst"


onstart:
    gc.enable()
    refuse_too_few_cores()


rule all:
    default_target: True
    input:
        f"{RESULTS}/report.html",
        figures(),
        TRANSFER,
        association_tables(),
