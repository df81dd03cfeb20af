"""`lethe run`: the workflow of an experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lethe.cli.options import AsJson
from lethe.cli.output import print_json
from lethe.errors import LetheError

if TYPE_CHECKING:
    from lethe.config.loading import LoadedExperiment


# Options of Snakemake whose value may be a YAML file, and those that take several files.
_TAKE_A_FILE = (
    "--archive",
    "--profile",
    "--report",
    "--report-metadata",
    "--runtime-profile",
    "--slurm-partition-config",
    "--snakefile",
    "--wait-for-files-file",
    "--workflow-profile",
    "-s",
)
_TAKE_FILES = ("--cleanup-metadata", "--cm", "--unneeded-temp-files", "--wait-for-files")


def run_workflow(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [OPTION]",
            help="YAML file of the experiment (config.yaml without it), then options of Snakemake.",
        ),
    ] = None,
    without_failed: Annotated[
        bool,
        typer.Option(
            "--without-failed",
            help="If jobs of some tasks fail, make the report without these tasks.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the workflow of an experiment, or continue it.

    The experiment is checked first: an error names the file and the line of the key. Then Snakemake
    runs with your options. You can stop it at any time and run it again; it resumes. If it fails,
    the last line is the error, and it names the file with the details.

    Needs a checkout of lethe. Without --cores (or --jobs, or a profile) it uses all cores.

    With --without-failed, tasks whose jobs failed are left out, and the report and the tables are
    made from the others; they name the missing tasks. Run without it to try those tasks again.

    Examples::

      lethe run                                     # config.yaml
      lethe run experiments/smollm2.yaml -n         # lists the jobs, runs nothing
      lethe run experiments/smollm2.yaml --cores 4
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.config.loading import load_experiment
    from lethe.config.yaml_file import read_yaml
    from lethe.jobs.workflow_process import run_snakemake
    from lethe.workflow import results_folder

    options = list(arguments or [])
    experiment = Path("config.yaml")
    if options and options[0].endswith((".yaml", ".yml")):
        experiment = Path(options.pop(0))
    for option in options:
        if option.split("=")[0] in ("--configfile", "--configfiles"):
            raise typer.BadParameter(f"name the experiment first instead of by {option}")
    _refuse_later_experiment(options)
    if not experiment.exists():
        raise LetheError(f"{experiment}: no such file; name the experiment: lethe run EXPERIMENT")
    loaded = load_experiment(read_yaml(experiment), files=[experiment])
    if without_failed:
        _run_without_failed(loaded, experiment, options, stdout_to_stderr=as_json)
    else:
        run_snakemake(experiment, options, stdout_to_stderr=as_json)
    if as_json:
        name = loaded.settings.experiment
        folder = results_folder(name)
        print_json({"experiment": name, "results": folder, "report": f"{folder}/report.html"})


def _refuse_later_experiment(options: list[str]) -> None:
    """Refuses a YAML file among the options, which Snakemake would read as a target."""
    option = ""
    for number, argument in enumerate(options):
        if argument.startswith("-"):
            option = argument
        elif argument.endswith((".yaml", ".yml")):
            is_value = options[number - 1] == option and option in _TAKE_A_FILE
            if not is_value and option not in _TAKE_FILES:
                raise typer.BadParameter(
                    f"name the experiment first: lethe run {argument} ...; after an option, "
                    f"{argument} would be a target"
                )


def _run_without_failed(
    loaded: LoadedExperiment, experiment: Path, options: list[str], *, stdout_to_stderr: bool
) -> None:
    """Runs the workflow, and again without the tasks whose jobs fail, until no other one fails."""
    from lethe.jobs.workflow_process import FailedWorkflow, run_snakemake
    from lethe.workflow import task_of_job

    for option in options:
        if option.split("=")[0] in ("--config", "-C"):
            raise typer.BadParameter(f"--without-failed and {option} cannot be combined")
    failed: list[str] = []
    while True:
        leave_out = [*loaded.left_out, *failed] if failed else []
        try:
            run_snakemake(
                experiment,
                ["--keep-going", *options],
                leave_out=leave_out,
                stdout_to_stderr=stdout_to_stderr,
            )
        except FailedWorkflow as failure:
            tasks = {task_of_job(rule, output) for rule, output in failure.jobs}
            if not tasks or None in tasks or tasks <= set(failed):
                raise
            failed += sorted(tasks - set(failed))
            print(f"going on without {', '.join(failed)}: {failure}", file=sys.stderr)
        else:
            break
    if failed:
        print(
            f"warning: the report and all tables are without {', '.join(failed)}, whose jobs "
            "failed; run again without --without-failed to try them again",
            file=sys.stderr,
        )
