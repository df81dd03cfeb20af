from snakemake.utils import min_version

min_version("9.20")

# Another experiment's file, given by --configfile, replaces ours. The two are never merged.
if not workflow.configfiles:

    configfile: "config.yaml"


include: "rules/common.smk"  # the experiment, and what several rules share
include: "rules/captions.smk"  # how Snakemake's report lists figures and tables
include: "rules/job_groups.smk"  # which rows are one job of a cluster


if MODELS:

    # Z is measured: every model is fine-tuned on every task.
    include: "rules/data.smk"  # upstream examples and tasks
    include: "rules/models.smk"  # base models
    include: "rules/measure.smk"  # rows of forgetting; gathers and checks Z
    include: "rules/cost.smk"  # the plan before a run, the ledger after it

else:

    # Z was measured elsewhere.
    include: "rules/own_matrix.smk"  # imports Z and checks it


include: "rules/rank.smk"  # the rank of Z
include: "rules/components.smk"  # the tasks, texts and domains of its components
include: "rules/completion.smk"  # how well a few probes predict a row
include: "rules/report.smk"  # figures and page


if SETTINGS.noise:

    include: "rules/noise.smk"  # repeats of a few rows


if FILES.transfer:

    include: "rules/transfer.smk"  # one model's rows from another's


if SETTINGS.similarity:

    include: "rules/similarity.smk"  # associations, which read the examples only


if SETTINGS.replay:

    include: "rules/replay.smk"  # predictions and replay runs


if SETTINGS.sequences:

    include: "rules/sequences.smk"  # fine-tunes on one task after the other


include: "rules/earlier_outputs.smk"  # what a job that fails leaves as it was
include: "rules/snakemake_patches.smk"  # what overwrites Snakemake's own classes


report: "report/workflow.rst"


onstart:
    gc.enable()
    refuse_too_few_cores()
    keep_earlier_outputs()


onsuccess:
    EARLIER.clear()


onerror:
    put_earlier_outputs_back()


rule all:
    """The report of the experiment, its figures and tables: the default target."""
    default_target: True
    input:
        FILES.targets(),
        lambda wildcards: FILES.lost_files(),
