# What lets thousands of jobs be planned in seconds. Nothing here changes what they are.

import gc
import inspect

from snakemake.common import overwrite_function_params
from snakemake.dag import ScriptProcessor
from snakemake.resources import Resource

# The graph is not garbage: none is looked for before the first job starts (`onstart`).
if workflow.is_main_process:
    gc.disable()

# Snakemake looks up the parameters of these for every job; written down, they are found at once.
for function in (
    *(memory, halvings, minutes, row_minutes),
    *(gpus, partition, replay_scores, replay_measured),
    Resource.evaluate,
):
    overwrite_function_params(function, inspect.signature(function).parameters)


def check_once_a_rule(processor, job, check=ScriptProcessor.process_job):
    """Snakemake reads the script of every job to see that it is there.

    No script of ours has a wildcard in its name, so one look a rule says the same.
    """
    checked = vars(processor).setdefault("checked_rules", set())
    if job.rule.name not in checked:
        checked.add(job.rule.name)
        check(processor, job)


ScriptProcessor.process_job = check_once_a_rule
