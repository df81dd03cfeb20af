from snakemake.utils import min_version

min_version("9.20")

# Another experiment's file, given by --configfile, replaces ours. The two are never merged.
if not workflow.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/job_groups.smk"


if MODELS:

    # Z is measured: every model is fine-tuned on every task.
    include: "rules/data.smk"
    include: "rules/models.smk"
    include: "rules/measure.smk"
    include: "rules/cost.smk"

else:

    # Z was measured elsewhere.
    include: "rules/own_matrix.smk"


include: "rules/rank.smk"
include: "rules/completion.smk"
include: "rules/report.smk"


if SETTINGS.noise:

    include: "rules/noise.smk"


if FILES.transfer:

    include: "rules/transfer.smk"


if SETTINGS.similarity:

    include: "rules/similarity.smk"


if SETTINGS.replay:

    include: "rules/replay.smk"


include: "rules/snakemake_patches.smk"


report: "report/workflow.rst"


onstart:
    gc.enable()
    refuse_too_few_cores()


rule all:
    """The report of the experiment, its figures and tables: the default target."""
    default_target: True
    input:
        FILES.targets(),
