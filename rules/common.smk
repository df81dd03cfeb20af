# Loads the experiment and names the pieces that several rules share.

import sys
from pathlib import Path

# Jobs import the library that lies beside the Snakefile: no installation, and no older copy.
LIBRARY = str(Path(workflow.basedir) / "src")
sys.path.insert(0, LIBRARY)

from lethe.config.loading import load_experiment
from lethe.errors import LetheError
from lethe.files import cache_folder
from lethe.jobs.running import set_job_environment
from lethe.similarity import OF_MODEL, OF_TEXT, OF_Z
from lethe.workflow import (
    JobResources,
    ResultFiles,
    RuleParameters,
    SourceFiles,
    checkpoint_folder,
    pattern_of,
    results_folder,
    value_by_model,
)

set_job_environment(LIBRARY)
try:
    EXPERIMENT = load_experiment(dict(config), files=workflow.configfiles)
except LetheError as error:
    raise WorkflowError(str(error))

SETTINGS = EXPERIMENT.settings
MODELS = list(SETTINGS.models)
RESULTS = results_folder(SETTINGS.experiment)
LOGS = f"{RESULTS}/logs"
CACHE = cache_folder()

FILES = ResultFiles(EXPERIMENT, RESULTS)
SOURCES = SourceFiles(EXPERIMENT, CACHE, RESULTS)
MACHINE = JobResources(EXPERIMENT)
PARAMETERS = RuleParameters(EXPERIMENT)


wildcard_constraints:
    model=pattern_of(FILES.models),
    task=pattern_of(EXPERIMENT.tasks),
    strategy=pattern_of(FILES.replay_settings),
    method=pattern_of(FILES.prediction_methods),
    seed=r"\d+",


# ---- parameters of several rules

# Snakemake does not record a parameter whose function takes `input` or `output`, so a change of it
# alone runs nothing again. Such functions give values on which no result depends, values that rows
# of an older version lack, and values that follow from the inputs.

SCORING = SETTINGS.scoring.model_dump(mode="json")
TASKS = PARAMETERS.task_table()
RECIPE = value_by_model(PARAMETERS.recipe, MODELS)
TASK_RECIPE = RECIPE
if SETTINGS.recipe.group_steps:
    TASK_RECIPE = lambda wildcards: PARAMETERS.task_recipe(
        wildcards.model, wildcards.task
    )


def unfinished(wildcards, output):
    """The folder where an interrupted job saves its state until it continues."""
    return checkpoint_folder(output[0])


# ---- inputs and resources of the rules that fine-tune a model on a task

FINE_TUNE = {
    "card": f"{RESULTS}/{{model}}/model.json",
    "base": f"{RESULTS}/{{model}}/base.parquet",
    "train": f"{RESULTS}/tasks/{{task}}/train.parquet",
    "evaluation": f"{RESULTS}/tasks/{{task}}/eval.parquet",
}
THREADS = value_by_model(MACHINE.threads, MODELS)
TRAINING_THREADS = value_by_model(MACHINE.training_threads, MODELS)
ON_MODEL = {
    "gpu": value_by_model(MACHINE.gpus, MODELS),
    "mem_mb": lambda wildcards, attempt: MACHINE.memory(wildcards.model, attempt),
    "halvings": lambda wildcards, attempt: MACHINE.halvings(attempt),
    "runtime": lambda wildcards, attempt: MACHINE.minutes(wildcards.model, attempt),
    "slurm_partition": value_by_model(MACHINE.partition, MODELS),
}


def refuse_too_few_cores():
    """Stops a run on this machine that has too few cores; a cluster gives each job its own."""
    cores = workflow.resource_settings.cores
    if workflow.local_exec and cores:
        try:
            MACHINE.check_cores(cores)
        except LetheError as error:
            raise WorkflowError(str(error))
