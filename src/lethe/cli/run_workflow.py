"""`lethe run`: the workflow of an experiment."""

from pathlib import Path
from typing import Annotated

import typer

from lethe.cli.output import AsJson, print_json
from lethe.errors import LetheError


def run_workflow(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [OPTION]",
            help="YAML file of the experiment (config.yaml without it), then options of Snakemake.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the workflow of an experiment, or continue it.

    The experiment is checked first: an error names the file and the line of the key. Then Snakemake
    runs with your options. You can stop it at any time and run it again; it resumes. If it fails,
    the last line is the error, and it names the file with the details.

    Needs a checkout of lethe. Without --cores (or --jobs, or a profile) it uses all cores.

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
    if not experiment.exists():
        raise LetheError(f"{experiment}: no such file; name the experiment: lethe run EXPERIMENT")
    loaded = load_experiment(read_yaml(experiment), files=[experiment])
    run_snakemake(experiment, options, stdout_to_stderr=as_json)
    if as_json:
        name = loaded.settings.experiment
        folder = results_folder(name)
        print_json({"experiment": name, "results": folder, "report": f"{folder}/report.html"})
