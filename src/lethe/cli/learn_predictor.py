"""`lethe learn`: a predictor of forgetting for a model, from fine-tunes on other tasks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lethe.cli.options import AsJson, ModelName, PoolFile
from lethe.cli.output import print_json
from lethe.errors import LetheError

if TYPE_CHECKING:
    from lethe.cost.learning_plan import LearningSettings
    from lethe.workflow import ResultFiles


def learn_predictor(
    model: ModelName,
    pool: PoolFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Predictor to write (.npz).")
    ] = Path("predictor.npz"),
    tasks: Annotated[
        int, typer.Option(help="Number of fine-tunes, each on one task of the table.")
    ] = 8,
    table: Annotated[
        Path | None,
        typer.Option("--table", metavar="CSV", help="Task table; by default tasks.csv of lethe."),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option("--sources", metavar="YAML", help="Its sources; by default BIG-bench."),
    ] = None,
    probes: Annotated[int, typer.Option(min=1, help="Examples to score in a new fine-tune.")] = 30,
    sibling: Annotated[
        Path | None,
        typer.Option(
            "--sibling",
            metavar="FOLDER",
            help="Results of another model on the same tasks and pool (see lethe mix).",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="full: all weights. lora: adapters.")] = "full",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each fine-tune.")] = 40,
    batch: Annotated[int, typer.Option(min=1, help="Examples per step.")] = 4,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the longest example.")] = 256,
    dtype: Annotated[
        str, typer.Option(help="float32, or autocast (computation in bfloat16, often faster).")
    ] = "float32",
    cores: Annotated[int, typer.Option(min=1, help="CPU cores.")] = 1,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say how long it will take, and stop there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learn to predict what a fine-tune of this model will forget.

    Writes an experiment beside the output, fine-tunes the model once per task, measures what each
    fine-tune has lost on the pool, and fits a predictor. Before the first fine-tune, a few steps
    are timed, and the number of fine-tunes and their time are printed. You can stop it any time and
    run it again; finished fine-tunes stay.

    How well it ranks depends on the number of tasks: with fewer than about five, the probes add
    nothing to the mean of the rows. At the end, each task is predicted from the others, and both
    correlations are printed. Use the method and about the steps of your own fine-tune.

    Needs a checkout of lethe, like lethe run.

    Examples::

      lethe learn HuggingFaceTB/SmolLM2-135M-Instruct --pool pool.parquet --tasks 8 --plan
      lethe learn my-model/ --pool pool.parquet --tasks 8 --method lora -o predictor.npz
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.completion.ranking import ENOUGH_TASKS
    from lethe.cost.learning_plan import LearningCost, LearningSettings
    from lethe.jobs.workflow_process import run_snakemake

    if sibling is not None and not (sibling / "Z.parquet").is_file():
        raise LetheError(
            f"--sibling {sibling}: has no Z.parquet; give a model's folder of a finished run, such "
            "as results/learn-small/model"
        )
    if method not in ("full", "lora"):
        raise typer.BadParameter(f"--method is {method}; give full or lora")
    if dtype not in ("float32", "autocast"):
        raise typer.BadParameter(f"--dtype is {dtype}; give float32 or autocast")
    _check_output(output, pool)
    usable_probes = _count_probes(probes, pool)
    settings = LearningSettings(
        method=method,
        steps=steps,
        batch=batch,
        lr=lr,
        max_tokens=max_tokens,
        threads=cores,
        dtype=dtype,
    )
    experiment, files = _write_experiment(
        model,
        pool,
        output,
        tasks=tasks,
        table=table,
        sources=sources,
        settings=settings,
    )
    folder = Path(files.folder)
    options = ["--cores", str(cores)]
    run_snakemake(experiment, [*options, f"{folder}/plan.csv"], stdout_to_stderr=True)
    cost = LearningCost.read(folder / "plan.csv")
    lines = [cost.sentence() + "."]
    if tasks < ENOUGH_TASKS:
        lines.append(
            f"{tasks} tasks are few: below about {ENOUGH_TASKS}, probes add nothing to the mean "
            "of the rows. More tasks rank better."
        )
    if usable_probes < probes:
        lines.append(f"{pool} is small, so {usable_probes} examples are probed, not {probes}.")
    facts: dict[str, Any] = {
        "experiment": str(experiment),
        "fine_tunes": cost.fine_tunes,
        "seconds_planned": cost.seconds,
    }
    if not as_json:
        print("\n".join(lines), flush=True)
    if not plan_only:
        (matrix,) = files.of_models("Z.parquet")
        # The files before Z are targets too, so that what a failed job lost is made again.
        targets = [matrix, *files.files_before_matrices()]
        run_snakemake(experiment, [*options, *targets], stdout_to_stderr=True)
        facts |= _fit(Path(matrix).parent, output, probes=usable_probes, sibling=sibling)
        if not as_json:
            print(facts["ranking"])
            print(f"{output}: {facts['tasks']} tasks, {facts['probes']} probes")
    if as_json:
        print_json(facts)


def _write_experiment(
    model: str,
    pool: Path,
    output: Path,
    *,
    tasks: int,
    table: Path | None,
    sources: Path | None,
    settings: "LearningSettings",
) -> tuple[Path, "ResultFiles"]:
    """Writes the experiment beside the output.

    Returns
    -------
    The experiment's file, and the paths of its results.

    Raises
    ------
    LetheError
        If an input is faulty, if the file exists with other settings, or if the folder of results
        belongs to another experiment. Then nothing is written.
    """
    from lethe.config.loading import load_experiment
    from lethe.config.task_table import read_task_table
    from lethe.config.yaml_file import read_yaml
    from lethe.cost.learning_plan import (
        learning_experiment,
        read_sources,
        select_tasks,
        write_task_table,
    )
    from lethe.files import write_text
    from lethe.jobs.workflow_process import checkout_folder
    from lethe.workflow import ResultFiles, results_folder

    table = table or checkout_folder() / "tasks.csv"
    all_tasks, problems = read_task_table(table)
    if problems:
        raise LetheError("; ".join(problems))
    selected = select_tasks(list(all_tasks.values()), tasks, table)
    folder = output.with_suffix(".experiment")
    path = folder / "experiment.yaml"
    name = f"learn-{output.stem}"
    description = learning_experiment(
        name,
        model=_model_entry(model),
        pool=pool,
        table=folder / "tasks.csv",
        sources=read_sources(sources) if sources else {"bigbench": {"kind": "bigbench"}},
        settings=settings,
    )
    text = _as_yaml(description)
    results = Path(results_folder(name))
    is_other = path.exists() and path.read_text("utf-8") != text
    if is_other and any(results.glob("*/rows/*.parquet")):
        raise LetheError(
            f"{path}: exists with other settings, and fine-tunes of it are finished; choose "
            "another name with -o, or give the settings of the first start"
        )
    written = (path, folder / "tasks.csv", _owner_record(results))
    new_files = [file for file in written if not file.exists()]
    new_folders = [parent for parent in (folder, results) if not parent.exists()]
    _claim_results(results, path, description, output)
    write_task_table(folder / "tasks.csv", selected)
    write_text(path, text)
    try:
        experiment = load_experiment(read_yaml(path), files=[path])
    except LetheError:
        # It never ran, and would stand in the way of the corrected command.
        for file in new_files:
            file.unlink()
        for parent in new_folders:
            parent.rmdir()
        raise
    return path, ResultFiles(experiment, str(results))


def _check_output(output: Path, pool: Path) -> None:
    """Refuses an output that is a folder, that has an impossible name, or that is no predictor."""
    from lethe.completion.predictor import Predictor
    from lethe.config.task_table import NAME

    if output.is_dir():
        raise LetheError(f"-o {output}: is a folder; give the name of a file")
    if not NAME.fullmatch(output.stem):
        raise LetheError(
            f"-o {output}: the name of the file may only hold letters, digits, _ . and -, because "
            "the experiment is named after it"
        )
    if output.exists():
        if output.resolve() == pool.resolve():
            raise LetheError(f"-o {output}: is the pool itself; choose another name")
        try:
            Predictor.load(output)
        except LetheError:
            raise LetheError(f"-o {output}: exists and is no predictor; choose another name")


def _count_probes(probes: int, pool: Path) -> int:
    """As many probes as asked for, or as leave one example of the pool to be predicted."""
    from lethe.data.examples import read_upstream

    examples = len(read_upstream(pool))
    if examples < 2:
        raise LetheError(f"{pool}: has {examples} example; a predictor needs at least two")
    return min(probes, examples - 1)


def _as_yaml(content: dict[str, Any]) -> str:
    import io

    from ruamel.yaml import YAML

    stream = io.StringIO()
    YAML().dump(content, stream)
    return stream.getvalue()


def _claim_results(
    results: Path, experiment: Path, description: dict[str, Any], output: Path
) -> None:
    """Records in the folder of results whose they are, and refuses those of another experiment.

    Experiments are named after the file of the predictor, without its folder, so that those of
    two models may have the same name.

    Raises
    ------
    LetheError
        Naming the folder and the other experiment.
    """
    from lethe.files import read_json, write_json

    record = _owner_record(results)
    # The table's place changes if its folder is moved. Snakemake watches its content.
    settings = {key: value for key, value in description.items() if key != "tasks"}
    owner = None
    if record.exists():
        found = read_json(record)
        moved = not Path(found["experiment"]).exists() and found["settings"] == settings
        if found["experiment"] != str(experiment.resolve()) and not moved:
            owner = found["experiment"]
    elif results.exists() and not experiment.exists():
        owner = "an experiment that lethe learn did not write here"
    if owner is not None:
        raise LetheError(
            f"{results}: holds the results of {owner}; give -o another file name than "
            f"{output.name} (another folder alone does not help)"
        )
    write_json(record, {"experiment": str(experiment.resolve()), "settings": settings})


def _owner_record(results: Path) -> Path:
    """The file in a folder of results that says whose they are."""
    return results / "experiment_file.json"


def _model_entry(model: str) -> dict[str, str]:
    from lethe.measure.model_lookup import PACKAGE

    if model == PACKAGE:
        return {"source": "package"}
    return {"source": "folder" if Path(model).is_dir() else "hub", "path": model}


def _fit(folder: Path, output: Path, *, probes: int, sibling: Path | None) -> dict[str, Any]:
    """Fits and saves the predictor; how well it ranks."""
    from lethe.completion.predictor import Predictor

    predictor = Predictor.from_results(folder, probes=probes, sibling=sibling)
    predictor.save(output)
    check = predictor.check_ranking()
    return {
        "predictor": str(output),
        "tasks": len(predictor.train),
        "probes": len(predictor.probes),
        "ranking": check.sentence(),
        "spearman": check.spearman,
        "spearman_mean_of_rows": check.spearman_mean_of_rows,
        "top_tenth": check.top_tenth_found,
    }
