"""Files, machine resources and parameters of the rules, as plain functions of an experiment.

A rule (rules/*.smk) says which file is made from which. The lists of files, the resources of jobs
and the values that Snakemake records come from this module. It knows no Snakemake and opens no
data file.
"""

import argparse
import ast
import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lethe.analysis import FINER_MEASURES
from lethe.config.data_settings import split_source
from lethe.config.loading import LoadedExperiment
from lethe.config.replay_settings import (
    WITH_SIBLING,
    WITHOUT_PROBES,
    ReplayRun,
    parameters_of_today,
)
from lethe.config.yaml_file import read_yaml
from lethe.data import bigbench
from lethe.data.packages import WHEEL, Package, wheel_of
from lethe.engine.model_files import defining_files, template_files
from lethe.errors import LetheError
from lethe.files import write_json
from lethe.replay.planned_contrasts import frontier_runs, plan_contrasts, runs_by_frontier
from lethe.similarity import OF_MODEL, OF_TEXT, OF_Z

# Memory of a job that analyses Z, in copies of its files.
ANALYSIS_COPIES = 8
# Size of Z by which such a job is given one more minute.
ANALYSIS_MB_PER_MINUTE = 10


def pattern_of(names: Iterable[str]) -> str:
    """Returns a wildcard's constraint that matches exactly these names, and nothing if empty."""
    return "|".join(map(re.escape, names)) or "(?!)"


def value_by_model(function: Callable[[str], Any], models: Sequence[str]) -> Any:
    """Returns the value that all models share, or else a function of a job's wildcards.

    Snakemake calls functions again for every job. A shared value costs nothing.

    Parameters
    ----------
    function
        Maps a model's name to a value.
    models
        Names of the experiment's models.
    """
    values = [function(model) for model in models]
    if values and all(value == values[0] for value in values):
        return values[0]
    return lambda wildcards: function(wildcards.model)


# Rule -> where the name of the task stands in the first file that a job of the rule makes.
_TASK_IN_OUTPUT = {
    "prepare_task": r"/tasks/([^/]+)/[^/]+$",
    "measure_row": r"/rows/([^/]+)\.parquet$",
    "measure_direction": r"/directions/([^/]+)\.parquet$",
    "replay_run": r"/replay/[^/]+/([^/]+)-seed\d+\.parquet$",
    "sequence_step": r"/sequences/[^/]+/[^/]+/seed\d+/step\d+-([^/]+)\.parquet$",
    "last_step": r"/sequences/[^/]+/[^/]+/seed\d+/step\d+-([^/]+)\.parquet$",
}


def task_of_job(rule: str, output: str) -> str | None:
    """Returns the task of a job, or None if the job concerns several tasks or none.

    Parameters
    ----------
    output
        The first file that the job makes.
    """
    match = re.search(_TASK_IN_OUTPUT.get(rule, r"(?!)"), output)
    return match[1] if match else None


def results_folder(experiment: str) -> str:
    """Returns the folder, relative to the working directory, of an experiment's results."""
    return f"results/{experiment}"


def checkpoint_folder(output: str | Path) -> str:
    """Returns the hidden folder beside `output` where its unfinished job saves its state."""
    folder, name = os.path.split(output)
    return os.path.join(folder, f".{os.path.splitext(name)[0]}.unfinished")


@dataclass(frozen=True)
class ResultFiles:
    """The files of an experiment below `results/<experiment>`, in the lists that rules read.

    Snakemake takes an empty list for no file.
    """

    experiment: LoadedExperiment
    folder: str

    @cached_property
    def models(self) -> list[str]:
        """Names of everything that has a Z: models, or else the user's own matrices."""
        return list(self.experiment.settings.models) or list(self.experiment.own_matrices)

    @cached_property
    def replay_settings(self) -> dict[str, ReplayRun]:
        """Settings of the replay runs by name; empty without a replay section."""
        replay = self.experiment.settings.replay
        return {run.name: run for run in replay.runs()} if replay else {}

    @property
    def prediction_methods(self) -> list[str]:
        """Completion methods whose predictions some replay run draws by."""
        replay = self.experiment.settings.replay
        return replay.prediction_methods if replay else []

    def of_models(self, name: str) -> list[str]:
        """The file `name` of every model or matrix."""
        return [f"{self.folder}/{model}/{name}" for model in self.models]

    def tasks(self, name: str) -> list[str]:
        """The file `name` (train.parquet or eval.parquet) of every task."""
        return [f"{self.folder}/tasks/{task}/{name}" for task in self.experiment.tasks]

    def row(self, model: str, task: str) -> str:
        """The row of one task in the Z of a model."""
        return f"{self.folder}/{model}/rows/{task}.parquet"

    def rows(self, model: str) -> list[str]:
        """The rows of a model, one per task."""
        return [self.row(model, task) for task in self.experiment.tasks]

    def tokens_of_row(self, row: str) -> dict[str, Any]:
        """The file of the token losses of a row, in a folder beside the rows, and their examples.

        The file is no output of a rule, because a row of an older version is complete without it.
        """
        folder, name = os.path.split(row)
        file = os.path.join(os.path.dirname(folder), "token_losses", name)
        return {"file": file, "examples": self.experiment.settings.token_examples}

    def token_files(self) -> dict[str, dict[str, str]]:
        """Model -> task -> file of token losses, which may be absent."""
        files: dict[str, dict[str, str]] = {}
        for model in self.experiment.settings.models:
            files[model] = {}
            for task in self.experiment.tasks:
                files[model][task] = self.tokens_of_row(self.row(model, task))["file"]
        return files

    def kept_weights(self, model: str) -> list[str]:
        """The folder of every fine-tuned model; empty if the recipe deletes the weights."""
        if not self.experiment.settings.recipe.keep_weights:
            return []
        return [f"{self.folder}/{model}/weights/{task}" for task in self.experiment.tasks]

    def prediction_changes(self, model: str) -> list[str]:
        """How each row changed the model's predictions, one file per task."""
        tasks = self.experiment.tasks
        return [f"{self.folder}/{model}/prediction_changes/{task}.parquet" for task in tasks]

    def finer_matrices(self, folder: str) -> dict[str, str]:
        """Measure -> its matrix beside Z in the folder of a model."""
        names = list(FINER_MEASURES)
        if self.experiment.settings.scoring.exact_match is not None:
            names.append("answer_gained")
        return {name: f"{folder}/Z_{name}.parquet" for name in names}

    def repeated_rows(self, model: str) -> list[str]:
        """The rows whose fine-tunes are repeated to measure noise."""
        return [self.row(model, task) for task in self.experiment.settings.noise.tasks]

    def repeats(self, model: str) -> list[str]:
        """Repeats of a few rows with other seeds, each scored again in other batches."""
        noise = self.experiment.settings.noise
        files = []
        for task in noise.tasks:
            for seed in range(1, noise.trainings + 1):
                repeat = f"{self.folder}/{model}/repeats/{task}-seed{seed}"
                files.append(f"{repeat}.parquet")
                for number in range(1, noise.measurements + 1):
                    files.append(f"{repeat}-again{number}.parquet")
        return files

    def replay_runs(self, model: str) -> list[str]:
        """Replay runs of a model, one per strategy or variant, test task and seed."""
        files = []
        for strategy in self.replay_settings:
            for task in self.tested_tasks:
                for seed in self.experiment.settings.replay.seeds:
                    run = f"{strategy}/{task}-seed{seed}.parquet"
                    files.append(f"{self.folder}/{model}/replay/{run}")
        return files

    def replay_scores(self, model: str, strategy: str, task: str) -> str | list[str]:
        """The forgetting that a strategy draws examples by: predicted, measured, or no file."""
        run = self.replay_settings[strategy]
        if run.prediction_method is not None:
            return self.prediction(model, run.prediction_method, task)
        return self.row(model, task) if run.reads_row else []

    @cached_property
    def tested_tasks(self) -> list[str]:
        """Tasks that replay is tested on; empty without a replay section."""
        replay = self.experiment.settings.replay
        return replay.tested_tasks(self.experiment.tasks) if replay else []

    def prediction(self, model: str, method: str, task: str) -> str:
        """The forgetting by a test task as a completion method predicts it."""
        return f"{self.folder}/{model}/predictions/{method}/{task}.parquet"

    def predictions(self, model: str, method: str) -> list[str]:
        """The forgetting by every test task as a completion method predicts it."""
        return [self.prediction(model, method, task) for task in self.tested_tasks]

    @property
    def gathers_training_rows(self) -> bool:
        """Whether replay reads the rows of some tasks only, so that these need a file."""
        replay = self.experiment.settings.replay
        if replay is None or replay.tasks == "all":
            return False
        reading = any(run.reads_training_rows for run in self.replay_settings.values())
        return reading or bool(self.prediction_methods)

    def training_rows(self, model: str) -> str:
        """The rows that replay predicts others from.

        They are apart from Z, so that a new test task changes no prediction of the others.
        """
        name = "training_rows" if self.gathers_training_rows else "Z"
        return f"{self.folder}/{model}/{name}.parquet"

    def files_of_training_rows(self, model: str) -> list[str]:
        """The rows of the training tasks of a model, one file each."""
        return [self.row(model, task) for task in self.experiment.names("train")]

    def replay_gradients(self, model: str, strategy: str) -> str | list[str]:
        """The association that strategies choose by gradients with; no file for the others."""
        reads = self.replay_settings[strategy].reads_gradients
        return f"{self.folder}/{model}/associations/gradient.parquet" if reads else []

    def replay_training_rows(self, model: str, strategy: str) -> str | list[str]:
        """The rows of other tasks, for a strategy that reads them; no file for most strategies."""
        reads = self.replay_settings[strategy].reads_training_rows
        return self.training_rows(model) if reads else []

    def replay_equal_row(self, model: str, strategy: str, task: str, seed: str) -> str | list[str]:
        """The row that a replay run equals: seed 0 without replay is the task's own fine-tune."""
        equal = self.replay_settings[strategy].equals_own_row(int(seed))
        return self.row(model, task) if equal else []

    def replay_tests(self, folder: str) -> dict[str, str]:
        """Output name -> tables of planned comparisons and of the frontier, if there are any."""
        tables = {}
        if self.plans_contrasts:
            tables["contrasts"] = f"{folder}/replay_contrasts.csv"
        if self.has_frontiers:
            tables["frontier"] = f"{folder}/replay_frontier.csv"
        return tables

    @cached_property
    def has_frontiers(self) -> bool:
        """Whether the experiment has enough doses of random replay to draw a frontier."""
        replay = self.experiment.settings.replay
        return replay is not None and bool(frontier_runs(replay))

    @property
    def advises(self) -> bool:
        """Whether the experiment advises which replay run to take for a task."""
        replay = self.experiment.settings.replay
        return replay is not None and replay.advise is not None

    @cached_property
    def plans_contrasts(self) -> bool:
        """Whether the experiment plans comparisons of replay runs."""
        replay = self.experiment.settings.replay
        return replay is not None and bool(plan_contrasts(replay))

    def prediction_sibling(self, model: str, method: str) -> str | list[str]:
        """Z of the sibling, for the predictions that read it; no file for other methods."""
        return self.sibling_matrix(model) if method == WITH_SIBLING else []

    def sibling_matrix(self, model: str) -> str | list[str]:
        """Z of the model that another is completed with; no file for that model itself."""
        return self._matrix_of_other(self.experiment.settings.completion.sibling, model)

    def prior_matrix(self, model: str) -> str | list[str]:
        """Z of the model that is the prior of another; no file for that model itself."""
        return self._matrix_of_other(self.experiment.settings.completion.prior, model)

    def _matrix_of_other(self, other: str | None, model: str) -> str | list[str]:
        """Z of a model <experiment>/<model>; no file if it is `model` itself or not set."""
        path = f"results/{other}/Z.parquet"
        is_other = other is not None and path != f"{self.folder}/{model}/Z.parquet"
        return path if is_other else []

    def row_names(self, matrix: str) -> str | list[str]:
        """The file that names the rows of an own matrix; no file if the task table names them."""
        if self.experiment.settings.matrices is None:
            return []
        return self.experiment.own_matrices[matrix].removesuffix(".npy") + ".meta"

    # ---- associations, the baselines that read the examples

    def association_names(self, kinds: Collection[str] = OF_TEXT + OF_MODEL + OF_Z) -> list[str]:
        """Names of the experiment's associations of these kinds."""
        similarity = self.experiment.settings.similarity
        names = similarity.associations if similarity else []
        return [name for name in names if name in kinds]

    def association_outputs(self, folder: str, kinds: Collection[str]) -> dict[str, str]:
        """Output name -> file of the associations, and of the embeddings that some come from."""
        names = self.association_names(kinds)
        files = {name: f"{folder}/associations/{name}.parquet" for name in names}
        for name in ("text_encoder", "representation"):
            if name in names:
                files["embeddings"] = f"{folder}/embeddings/{name}.parquet"
        return files

    def associations(self, model: str) -> dict[str, str]:
        """Name -> file of the associations that the Z of a model is compared with."""
        files = {}
        for name in self.association_names(OF_TEXT):
            files[name] = f"{self.folder}/associations/{name}.parquet"
        for name in self.association_names(OF_MODEL + OF_Z):
            files[name] = f"{self.folder}/{model}/associations/{name}.parquet"
        return files

    def directions(self, model: str) -> list[str]:
        """Sketches of how each fine-tune moved the weights; empty if no association needs them."""
        if not self.association_names(["weight_difference"]):
            return []
        tasks = self.experiment.tasks
        return [f"{self.folder}/{model}/directions/{task}.parquet" for task in tasks]

    def upstream_of_recipe(self, model: str) -> str | list[str]:
        """The upstream examples that a model's training reads; no file if it reads none.

        Elastic weight consolidation and routers read the base model on upstream examples.
        """
        recipe = self.experiment.recipe(model)
        return f"{self.folder}/upstream.parquet" if recipe.ewc or recipe.routing else []

    def tower_embeddings(self, model: str) -> str:
        """The embeddings that the two-tower network of a model reads."""
        return self._embeddings(model, self.experiment.settings.similarity.two_tower.embeddings)

    def completion_embeddings(self, model: str) -> str | list[str]:
        """The embeddings that completion reads; no file if it reads none."""
        name = self.experiment.settings.completion.embeddings
        return self._embeddings(model, name) if name else []

    def _embeddings(self, model: str, name: str) -> str:
        folder = self.folder if name in OF_TEXT else f"{self.folder}/{model}"
        return f"{folder}/embeddings/{name}.parquet"

    # ---- sequences

    @property
    def sequence_models(self) -> list[str]:
        """The models that follow the orders; empty without a section sequences."""
        sequences = self.experiment.settings.sequences
        return sequences.of_models(list(self.experiment.settings.models)) if sequences else []

    def sequence_step(
        self, model: str, order: str, run: str, seed: int | str, number: int, suffix: str
    ) -> str:
        """The file with this suffix of a step of a sequence; steps count from 1."""
        task = self.experiment.settings.sequences.orders[order][number - 1]
        folder = f"{self.folder}/{model}/sequences/{order}/{run}/seed{seed}"
        return f"{folder}/step{number}-{task}.{suffix}"

    def sequence_rows(self, model: str) -> list[str]:
        """The rows of all steps of all sequences of a model."""
        sequences = self.experiment.settings.sequences
        files = []
        for run in sequences.runs:
            for order, tasks in sequences.orders_of(run).items():
                for seed in sequences.seeds:
                    for number in range(1, len(tasks) + 1):
                        file = self.sequence_step(
                            model, order, run, seed, number=number, suffix="parquet"
                        )
                        files.append(file)
        return files

    def sequence_start(
        self, model: str, order: str, run: str, seed: str, number: int
    ) -> str | list[str]:
        """The weights that the step before hands on; no file for the first step."""
        if number == 1:
            return []
        return self.sequence_step(model, order, run, seed, number=number - 1, suffix="safetensors")

    def earlier_examples(self, order: str, number: int, name: str) -> list[str]:
        """The file `name` of every task of an order before this step."""
        tasks = self.experiment.settings.sequences.orders[order][: number - 1]
        return [f"{self.folder}/tasks/{task}/{name}" for task in tasks]

    def examples_of_order(self, order: str, name: str) -> list[str]:
        """The file `name` of every task of an order, by the tasks' names."""
        tasks = sorted(self.experiment.settings.sequences.orders[order])
        return [f"{self.folder}/tasks/{task}/{name}" for task in tasks]

    def earlier_training(self, order: str, run: str, number: int) -> list[str]:
        """The training examples of earlier tasks, for a run that replays them."""
        if not self.experiment.settings.sequences.runs[run].earlier:
            return []
        return self.earlier_examples(order, number, "train.parquet")

    def sequence_replay(self, run: str) -> str:
        """The replay run of the section replay that the steps of a run follow."""
        return self.experiment.settings.sequences.runs[run].replay

    def sequence_scores(self, model: str, run: str, task: str) -> str | list[str]:
        """The forgetting that a step draws upstream examples by; no file without replay."""
        strategy = self.sequence_replay(run)
        if strategy not in self.replay_settings:
            return []
        return self.replay_scores(model, strategy, task)

    def sequence_gradients(self, model: str, run: str) -> str | list[str]:
        """The association that a step draws upstream examples by; no file for most runs."""
        strategy = self.sequence_replay(run)
        return self.replay_gradients(model, strategy) if strategy in self.replay_settings else []

    def sequence_training_rows(self, model: str, run: str) -> str | list[str]:
        """The rows of other tasks, for a run whose strategy reads them."""
        strategy = self.sequence_replay(run)
        if strategy not in self.replay_settings:
            return []
        return self.replay_training_rows(model, strategy)

    def multitask_rows(self, model: str) -> list[str]:
        """The rows of the fine-tunes on all tasks of an order mixed: one per set of tasks."""
        sequences = self.experiment.settings.sequences
        if not sequences.multitask:
            return []
        orders = dict.fromkeys(sequences.multitask_order(order) for order in sequences.orders)
        files = []
        for order in orders:
            for seed in sequences.seeds:
                files.append(
                    f"{self.folder}/{model}/sequences/{order}/multitask-seed{seed}.parquet"
                )
        return files

    def rows_of_orders(self, model: str) -> list[str]:
        """The rows of the single fine-tunes on all tasks that some order has."""
        return [self.row(model, task) for task in self.tasks_of_orders]

    @property
    def tasks_of_orders(self) -> list[str]:
        """The tasks that some order has, in the order of the task table."""
        orders = self.experiment.settings.sequences.orders.values()
        return [task for task in self.experiment.tasks if any(task in order for order in orders)]

    def sequence_tables(self, folder: str) -> dict[str, str]:
        """Output name -> table on the sequences of a model."""
        names = ("steps", "tasks", "measures", "comparison", "additivity", "prediction", "choice")
        return {name: f"{folder}/sequence_{name}.csv" for name in names}

    def tables_of_sequences(self) -> list[str]:
        """The tables on the sequences of all models; empty without a section sequences."""
        files: list[str] = []
        for model in self.sequence_models:
            files += self.sequence_tables(f"{self.folder}/{model}").values()
        return files

    def reported_tables_of_sequences(self) -> list[str]:
        """The tables on sequences that the report shows."""
        files = []
        for model in self.sequence_models:
            tables = self.sequence_tables(f"{self.folder}/{model}")
            for name in ("steps", "comparison", "additivity", "prediction", "choice"):
                files.append(tables[name])
        return files

    def last_step_pattern(self) -> str:
        """A constraint of the wildcard `order` that matches in the last step of an order only."""
        sequences = self.experiment.settings.sequences
        parts = []
        for order, tasks in sequences.orders.items():
            last = rf"(?=/[^/]+/seed\d+/step{len(tasks)}-)"
            parts.append(re.escape(order) + last)
        return "|".join(parts)

    def component_tables(self, folder: str) -> dict[str, str]:
        """Output name -> tables of the components of Z; domains are tested if they are known."""
        tables = {"loadings": f"{folder}/components.csv", "tree": f"{folder}/task_tree.csv"}
        if self.upstream:
            tables["domain_tests"] = f"{folder}/component_domains.csv"
        return tables

    # ---- report

    @cached_property
    def figures(self) -> list[str]:
        """Names of the report's figures."""
        names = ["overview", "heatmap", "spectrum", "rank_curves", "task_tree", "completion"]
        if self.precision_tables():
            names.append("precision")
        if self.experiment.settings.models:
            names.append("forgetting_by_task")
        if self.experiment.settings.replay:
            names.append("replay")
        if self.sequence_models:
            names.append("sequences")
        return names

    def plots(self, suffix: str) -> list[str]:
        """The figures as files of one format (png or svg)."""
        return [f"{self.folder}/plots/{name}.{suffix}" for name in self.figures]

    @property
    def upstream(self) -> dict[str, str]:
        """Input name -> the upstream examples; empty for own matrices without texts."""
        settings = self.experiment.settings
        if not settings.models and settings.own_texts is None:
            return {}
        return {"upstream": f"{self.folder}/upstream.parquet"}

    @property
    def transfer(self) -> list[str]:
        """The comparison of models; empty if there is one model only."""
        several = len(self.experiment.settings.models) > 1
        return [f"{self.folder}/transfer.csv"] if several else []

    def figure_tables(self) -> dict[str, Any]:
        """Input name -> the tables that the figures show; empty lists for absent parts."""
        settings = self.experiment.settings
        return {
            "matrices": self.of_models("Z.parquet"),
            "curves": self.of_models("rank_curve.csv"),
            "completions": self.of_models("completion.csv"),
            "summaries": self.of_models("rows.csv") if settings.models else [],
            "comparisons": self.of_models("replay_comparison.csv") if settings.replay else [],
            "noise": self.of_models("noise.json") if settings.noise else [],
            "precision": self.precision_tables(),
            "upstream": self.upstream.get("upstream", []),
            "sequences": self.reported_tables_of_sequences(),
        }

    def precision_tables(self) -> list[str]:
        """The precision to expect by number of probes and training tasks, one table per model."""
        wanted = self.experiment.settings.completion.precision_tasks
        return self.of_models("precision.csv") if wanted else []

    def report_tables(self) -> dict[str, Any]:
        """Input name -> the tables that the report shows; empty lists for absent parts."""
        settings = self.experiment.settings
        return self.figure_tables() | {
            "bases": self.of_models("base.parquet") if settings.models else [],
            "loadings": self.of_models("components.csv"),
            "domain_tests": self.of_models("component_domains.csv") if self.upstream else [],
            "training": self.tasks("train.parquet") if settings.models else [],
            "runs": self.of_models("replay.csv") if settings.replay else [],
            "frontiers": self.of_models("replay_frontier.csv") if self.has_frontiers else [],
            "advice": self.of_models("replay_advice_score.csv") if self.advises else [],
            "contrasts": self.of_models("replay_contrasts.csv") if self.plans_contrasts else [],
            "sanity": [] if settings.models else self.of_models("sanity.json"),
            "associations": self.association_tables(),
            "transfer": self.transfer,
            **self.finer_tables(),
        }

    def finer_tables(self) -> dict[str, list[str]]:
        """Input name -> the tables of changed predictions; empty if they are not measured."""
        if not self.experiment.settings.prediction_changes:
            return {}
        return {"finer": self.of_models("prediction_changes.csv")}

    def association_tables(self) -> list[str]:
        """Correlations of the associations with Z, one table per model."""
        similarity = self.experiment.settings.similarity
        return self.of_models("associations.csv") if similarity else []

    def targets(self) -> list[str]:
        """The files that a run makes."""
        report = f"{self.folder}/report.html"
        figures = self.plots("png") + self.plots("svg")
        others = [*self.transfer, *self.association_tables(), *self.tables_of_sequences()]
        return [report, *figures, *others]

    def lost_files(self) -> list[str]:
        """Files between the data and the report that are missing, although later ones exist.

        You have removed them, or a run was killed, or a job failed whose earlier output could not
        be put back (rules/earlier_outputs.smk). Snakemake makes a missing file again if it is a
        target. If only later files were targets and still existed, it would find nothing to do. In
        a first run this list is empty, because Snakemake prints all inputs of the last rule.
        """
        later = [f"{self.folder}/report.html", *self.of_models("Z.parquet")]
        if not any(Path(file).exists() for file in later):
            return []
        files = dict.fromkeys(self.files_before_report())
        return [file for file in files if not Path(file).exists()]

    def files_before_report(self) -> list[str]:
        """At least one file of every job between the data and the report; some stand twice."""
        files = []
        for tables in self.report_tables().values():
            files += [tables] if isinstance(tables, str) else tables
        if not self.experiment.settings.models:
            return files
        files += self.files_before_matrices() + self.recorded_jobs()
        for model in self.models:
            if self.gathers_training_rows:
                files.append(self.training_rows(model))
            for method in self.prediction_methods:
                files += self.predictions(model, method)
            files += self.associations(model).values()
            files += self.directions(model)
        return files

    def files_before_matrices(self) -> list[str]:
        """At least one file of every job that Z of the experiment's models rests on."""
        files = [f"{self.folder}/upstream.parquet", *self.tasks("eval.parquet")]
        files += self.of_models("model.json") + self.of_models("base.parquet")
        for model in self.models:
            # Of a model from scratch this is the tokenizer, which is made by a job of its own.
            files.append(self.timed_model(model))
            files += self.rows(model) + self.kept_weights(model)
        return files

    @property
    def left_out(self) -> dict[str, str]:
        """Output name -> the table of the tasks that are left out; empty if none are."""
        return {"left_out": f"{self.folder}/left_out.csv"} if self.experiment.left_out else {}

    # ---- cost

    def finished_ledger(self) -> dict[str, str]:
        """Parameter name -> the ledger, which the report shows; empty until there is one.

        It is no input, because the report must not run the plan.
        """
        path = Path(self.folder) / "ledger.csv"
        return {"ledger": str(path)} if path.exists() else {}

    def timed_model(self, model: str) -> str:
        """The file that a model needs before its steps can be timed.

        A model from scratch is timed with random weights, because speed does not depend on them.
        """
        from_scratch = self.experiment.settings.models[model].source == "scratch"
        name = "base/tokenizer.json" if from_scratch else "model.json"
        return f"{self.folder}/{model}/{name}"

    def rows_by_rule(self) -> dict[str, dict[str, list[str]]]:
        """Rule -> model -> the files that record what its jobs did and how long they took."""
        settings = self.experiment.settings
        models = list(settings.models)
        files = {
            "score_base": {model: [f"{self.folder}/{model}/base.parquet"] for model in models},
            "measure_row": {model: self.rows(model) for model in models},
        }
        if settings.noise:
            files["repeat_row"] = {model: self.repeats(model) for model in models}
        if settings.replay:
            files["replay_run"] = {model: self.replay_runs(model) for model in models}
        if settings.sequences:
            followers = settings.sequences.of_models(models)
            files["sequence_step"] = {model: self.sequence_rows(model) for model in followers}
            if settings.sequences.multitask:
                files["multitask_row"] = {model: self.multitask_rows(model) for model in followers}
        return files

    def recorded_jobs(self) -> list[str]:
        """All files of `rows_by_rule`."""
        files: list[str] = []
        for files_by_model in self.rows_by_rule().values():
            for of_model in files_by_model.values():
                files += of_model
        return files


@dataclass(frozen=True)
class SourceFiles:
    """The files that an experiment starts from: packages in the cache, and the user's own.

    The cache is shared by all experiments and may lie anywhere, so that no rule reads or makes a
    file in it. A rule makes sure that the cache holds a package, and writes a record, below
    `folder`, that other rules wait for.
    """

    experiment: LoadedExperiment
    cache: str
    folder: str

    @cached_property
    def bigbench_packages(self) -> dict[str, Package]:
        """Name of each BIG-bench extract that is read -> the package that it is made from."""
        packages = {}
        for source in self.experiment.settings.sources.values():
            if source.kind == "bigbench":
                package = bigbench.package_of(source)
                packages[bigbench.extract_name(package)] = package
        return packages

    @cached_property
    def wheels(self) -> dict[str, Package]:
        """File name of each wheel that a model is unpacked from -> its package."""
        packages = {}
        for name in self.models_from("package"):
            package = self.model_package(name)
            packages[package.file] = package
        return packages

    @cached_property
    def encoder_package(self) -> Package | None:
        """The package that the sentence encoder is unpacked from, if it comes from one."""
        if self._encoder_source != "package":
            return None
        return wheel_of(self.experiment.settings.similarity.encoder)

    def record(self, name: str) -> str:
        """The file that says that the cache holds this package, or what is made of it."""
        return f"{self.folder}/packages/{name}.json"

    def restore_records(self) -> None:
        """Writes the missing records of packages that finished files were made from.

        Earlier versions removed them. Without them, a new task would run all finished tasks again.
        The encoder's record is not needed: the one job that reads it runs again for any new task.
        """
        records: set[str] = set()
        if os.path.exists(f"{self.folder}/upstream.parquet"):
            records.update(self.upstream_records())
        for task in self.experiment.tasks:
            if os.path.exists(f"{self.folder}/tasks/{task}/train.parquet"):
                records.update(self.task_records(task))
        for model in self.models_from("package"):
            if os.path.exists(f"{self.folder}/{model}/model.json"):
                records.add(self.model_record(model))
        for record in sorted(records):
            if not os.path.exists(record):
                name = os.path.basename(record).removesuffix(".json")
                with contextlib.suppress(OSError):  # A run that must write here says so itself.
                    write_json(record, {"path": f"{self.cache}/{name}"})

    def earlier_input(self, path: str) -> str:
        """The input of today for one that an earlier version recorded: a file in the cache."""
        if not os.path.isabs(path):
            return path
        name = os.path.basename(path)
        if name in self.bigbench_packages or name in self.wheels:
            return self.record(name)
        if self.encoder_package and path.endswith(f"{self._encoder_folder()}/model.safetensors"):
            return self.encoder_record()[0]
        return path

    def earlier_inputs(self, output: str, recorded: Iterable[str]) -> list[str]:
        """The inputs of today for those that an earlier version recorded with an output, sorted.

        Earlier versions recorded no file of a saved dataset, and one file of an encoder in a
        folder. The others are added, so that finished runs stay up to date.
        """
        inputs = {self.earlier_input(path) for path in recorded}
        for key in self._sources_of(output):
            source = self.experiment.settings.sources[key]
            if source.kind == "saved" and not _below(source.path, inputs):
                inputs |= set(self._saved_datasets[key])
        encoder_files = self.encoder_files()
        if encoder_files and _below(self.encoder_folder(), inputs) == [
            os.path.normpath(f"{self.encoder_folder()}/config.json")
        ]:
            inputs |= set(encoder_files)
        return sorted(inputs)

    def _sources_of(self, output: str) -> list[str]:
        """Keys of the sources that a prepared file comes from; none for any other file."""
        texts: list[str] = []
        task = task_of_job("prepare_task", output)
        upstream = self.experiment.settings.upstream
        prepared = (f"{self.folder}/upstream.parquet", f"{self.folder}/corpus.parquet")
        if task in self.experiment.tasks:
            texts = [self.experiment.tasks[task].source]
        elif output in prepared and upstream is not None:
            texts = list(upstream.domains.values())
        return [split_source(text)[0] for text in texts]

    def earlier_parameter(self, value: str) -> str:
        """The recorded parameter of today for one of an earlier version: an extract's path."""
        for name in self.bigbench_packages:
            if value.endswith(f"/{name}'"):
                return repr(name)
        return value

    @cached_property
    def _saved_datasets(self) -> dict[str, list[str]]:
        """Key of each source that is a saved dataset -> its files."""
        files = {}
        for key, source in self.experiment.settings.sources.items():
            if source.kind == "saved":
                files[key] = source.saved_files()
        return files

    def _extracts(self, sources: Iterable[str]) -> list[str]:
        names = []
        for text in sources:
            source = self.experiment.settings.sources[split_source(text)[0]]
            if source.kind == "bigbench":
                names.append(bigbench.extract_name(bigbench.package_of(source)))
        return list(dict.fromkeys(names))

    def _files(self, sources: Iterable[str]) -> list[str]:
        files: list[str] = []
        for text in sources:
            key, where = split_source(text)
            source = self.experiment.settings.sources[key]
            if source.kind == "files":
                files += source.reads(where)
            elif source.kind == "saved":
                files += self._saved_datasets[key]
        return list(dict.fromkeys(files))

    def upstream_records(self) -> list[str]:
        """The records of the BIG-bench extracts that domains are read from."""
        domains = self.experiment.settings.upstream.domains.values()
        return [self.record(name) for name in self._extracts(domains)]

    def upstream_extract(self) -> str | None:
        """The name of the first BIG-bench extract of the domains, or None."""
        return next(iter(self._extracts(self.experiment.settings.upstream.domains.values())), None)

    def upstream_files(self) -> list[str]:
        """The user's own files that domains are read from, or the finished pool."""
        upstream = self.experiment.settings.upstream
        if upstream.pool is not None:
            return [upstream.pool]
        return self._files(upstream.domains.values())

    def task_records(self, task: str) -> list[str]:
        """The record of the BIG-bench extract that a task is read from: one, or none."""
        names = self._extracts([self.experiment.tasks[task].source])
        return [self.record(name) for name in names]

    def task_extract(self, task: str) -> str | None:
        """The name of the BIG-bench extract that a task is read from, or None."""
        return next(iter(self._extracts([self.experiment.tasks[task].source])), None)

    def task_files(self, task: str) -> list[str]:
        """The user's own files that a task is read from."""
        return self._files([self.experiment.tasks[task].source])

    def models_from(self, *sources: str) -> list[str]:
        """Names of the models whose `source` is one of these."""
        models = self.experiment.settings.models
        return [name for name, model in models.items() if model.source in sources]

    def model_package(self, model: str) -> Package:
        """The package that a model is unpacked from."""
        return wheel_of(self.experiment.settings.models[model])

    def model_record(self, model: str) -> str:
        """The record of the package that a model is unpacked from."""
        return self.record(self.model_package(model).file)

    def model_files(self, model: str) -> list[str]:
        """The files in the folder of a model that define it, so that changes are noticed."""
        settings = self.experiment.settings.models[model]
        if settings.source != "folder":
            return []
        files = [str(path) for path in defining_files(settings.path)]
        return files or [f"{settings.path}/config.json"]

    def chat_template(self, model: str) -> list[str]:
        """The user's own files that hold the chat template of a model."""
        name = self.experiment.settings.models[model].chat_template
        if name.endswith(".jinja"):
            return [name]
        if name in ("own", "none"):
            return []
        # The folder of a model that lends its template; a model on the hub has none here.
        return [str(path) for path in template_files(name)]

    @property
    def _encoder_source(self) -> str | None:
        similarity = self.experiment.settings.similarity
        if similarity is None or "text_encoder" not in similarity.associations:
            return None
        return similarity.encoder.source

    def encoder_folder(self) -> str | None:
        """The folder of the sentence encoder; None if it is on the hub or not needed."""
        if self._encoder_source == "folder":
            return self.experiment.settings.similarity.encoder.path
        if self.encoder_package is not None:
            return f"{self.cache}/{self._encoder_folder()}"
        return None

    def _encoder_folder(self) -> str:
        """The folder of an unpacked encoder in the cache."""
        return "encoders/" + self.encoder_package.file.removesuffix(WHEEL)

    def encoder_files(self) -> list[str]:
        """The files that define the sentence encoder that the user keeps in a folder."""
        if self._encoder_source != "folder":
            return []
        folder = self.encoder_folder()
        return [str(path) for path in defining_files(folder)] or [f"{folder}/config.json"]

    def encoder_record(self) -> list[str]:
        """The record of the sentence encoder that is unpacked from its package: one, or none."""
        if self.encoder_package is None:
            return []
        return [self.record(self.encoder_package.file.removesuffix(WHEEL))]


def _below(folder: str, paths: Iterable[str]) -> list[str]:
    """The paths that lie in a folder, sorted."""
    start = os.path.normpath(folder) + os.sep
    normalised = (os.path.normpath(path) for path in paths)
    return sorted(path for path in normalised if path.startswith(start))


@dataclass(frozen=True)
class JobResources:
    """The part of the machine that one job of a model needs; never changes a result.

    A model's `resources` in the experiment come first. Memory and minutes grow with each attempt.
    """

    experiment: LoadedExperiment

    def _is_small(self, model: str) -> bool:
        return self.experiment.settings.models[model].source == "scratch"

    def _setting(self, model: str, key: str, default: Any) -> Any:
        value = getattr(self.experiment.settings.models[model].resources, key)
        return default if value is None else value

    def threads(self, model: str) -> int:
        """CPU threads of one process."""
        return self.experiment.settings.models[model].threads

    def training_threads(self, model: str) -> int:
        """CPU threads of a job that trains: a model in shards has several processes."""
        return self.threads(model) * self.experiment.recipe(model).processes

    def gpus(self, model: str) -> int:
        """Count of GPUs.

        Models of a few million parameters are faster on a CPU core than on a shared GPU.
        """
        gpus = self.experiment.settings.models[model].gpus
        return gpus or self._setting(model, "gpu", 0 if self._is_small(model) else 1)

    def memory(self, model: str, attempt: int = 1) -> int:
        """Memory in MB."""
        return self._setting(model, "mem_mb", 2000 if self._is_small(model) else 16000) * attempt

    def minutes(self, model: str, attempt: int = 1) -> int:
        """Minutes of any job but a row."""
        return self._setting(model, "runtime", 240) * attempt

    def row_minutes(self, model: str, attempt: int = 1) -> int:
        """Minutes of one fine-tune; several of a small model can be one job of a cluster."""
        return self._setting(model, "runtime", 30 if self._is_small(model) else 240) * attempt

    def analysis(self) -> dict[str, Callable[..., int]]:
        """Resources of a rule that reads Z or its rows, as functions of its input for Snakemake.

        Every rule of the analysis has them. Snakemake does not record resources, so that a change
        here reruns no finished job.
        """
        return {
            "mem_mb": lambda wildcards, input, attempt: self.analysis_memory(
                input.size_mb, attempt
            ),
            "runtime": lambda wildcards, input, attempt: self.analysis_minutes(
                input.size_mb, attempt
            ),
        }

    def analysis_memory(self, size_mb: float, attempt: int = 1) -> int:
        """Memory in MB of a job that reads this much of Z and of other tables."""
        return int(2000 + ANALYSIS_COPIES * size_mb) * attempt

    def analysis_minutes(self, size_mb: float, attempt: int = 1) -> int:
        """Minutes of such a job."""
        return int(30 + size_mb / ANALYSIS_MB_PER_MINUTE) * attempt

    def partition(self, model: str) -> str | None:
        """The cluster's partition; None: the cluster's default."""
        return self._setting(model, "slurm_partition", None)

    def halvings(self, attempt: int) -> int:
        """How often batches are halved: the second attempt gets more memory only."""
        return max(0, attempt - 2)

    def rows_per_job(self, model: str) -> int:
        """Rows that one job of a cluster measures: start-up would dominate a small model's row."""
        return self._setting(model, "together", 8 if self._is_small(model) else 1)

    def check_cores(self, cores: int) -> None:
        """Refuses a run with fewer cores than a model's threads.

        Threads are part of a result's bytes, and Snakemake would silently give a job fewer.

        Raises
        ------
        LetheError
            Naming the model, its threads and the cores.
        """
        for model in self.experiment.settings.models:
            threads = self.training_threads(model)
            if threads > cores:
                raise LetheError(
                    f"models.{model}: needs {threads} threads, more than --cores {cores}; give as "
                    "many cores, or lower its threads (they are part of a result's bytes)"
                )


@dataclass(frozen=True)
class RuleParameters:
    """Settings as the plain values that Snakemake records: a changed value reruns a job."""

    experiment: LoadedExperiment

    def task_table(self) -> dict[str, list[str]]:
        """Task -> its group and split."""
        return {name: [task.group, task.split] for name, task in self.experiment.tasks.items()}

    def completion(self) -> dict[str, Any]:
        """The settings that scores depend on; a sibling only if there is one."""
        completion = self.experiment.settings.completion
        excluded = {"precision_tasks"}
        # Finished runs have no such value, and stay up to date without it.
        if completion.sibling is None:
            excluded.add("sibling")
        return completion.model_dump(mode="json", exclude=excluded)

    def precision(self) -> dict[str, list[int]]:
        """Numbers of probes and of training tasks of the curve of precision."""
        completion = self.experiment.settings.completion
        return {"probes": completion.probes, "training_tasks": completion.precision_tasks}

    def settings(self) -> dict[str, Any]:
        """All settings, as the report shows them; without `leave_out` if nothing is left out."""
        absent = {"tasks"} if self.experiment.settings.leave_out else {"tasks", "leave_out"}
        if self.experiment.settings.sequences is None:
            absent.add("sequences")
        return self.experiment.settings.model_dump(mode="json", exclude=absent)

    def left_out(self) -> dict[str, dict[str, list[str]]]:
        """The parameter with the group and split of the left-out tasks; empty if there are none."""
        left_out = self.experiment.left_out
        if not left_out:
            return {}
        return {"left_out": {name: [task.group, task.split] for name, task in left_out.items()}}

    def source(self, text: str) -> dict[str, Any]:
        """Settings and place of a `<source key>:<where>`."""
        key, where = split_source(text)
        source = self.experiment.settings.sources[key]
        return {"source": source.model_dump(mode="json"), "where": where}

    def domains(self) -> dict[str, dict[str, Any]]:
        """Domain -> settings and place of its source."""
        domains = self.experiment.settings.upstream.domains
        return {domain: self.source(text) for domain, text in domains.items()}

    def task_source(self, task: str) -> dict[str, Any]:
        """Settings and place of a task's source."""
        return self.source(self.experiment.tasks[task].source)

    def model(self, model: str) -> dict[str, Any]:
        """The settings that identify the base model."""
        excluded = {"recipe", "resources", "threads", "gpus", "strategy"}
        return self.experiment.settings.models[model].model_dump(mode="json", exclude=excluded)

    def machine(self, model: str) -> dict[str, int]:
        """GPUs and threads of a training of this model."""
        machine = JobResources(self.experiment)
        return {"gpus": machine.gpus(model), "threads": machine.training_threads(model)}

    def recipe(self, model: str) -> dict[str, Any]:
        """The recipe of a model, less what no result depends on."""
        return self.experiment.recipe(model).of_result()

    def task_recipe(self, model: str, task: str) -> dict[str, Any]:
        """The recipe of a model with the task's `group`, whose steps may differ."""
        return self.recipe(model) | {"group": self.experiment.tasks[task].group}

    def reading(self, model: str) -> dict[str, Any]:
        """The part of a model's recipe that decides how examples are cut."""
        keys = {"max_tokens", "truncation"}
        return self.experiment.recipe(model).model_dump(mode="json", include=keys)

    def similarity(self, *keys: str) -> dict[str, Any]:
        """These settings of the similarity section."""
        return self.experiment.settings.similarity.model_dump(mode="json", include=set(keys))

    def text_similarity(self) -> dict[str, Any]:
        """The settings that associations of text depend on, and no others."""
        if "text_encoder" in self.experiment.settings.similarity.associations:
            return self.similarity("task_examples", "encoder_tokens", "encoder")
        return self.similarity("task_examples")

    def replay(self, strategy: str, task: str) -> dict[str, Any]:
        """The settings that a replay run of one strategy, or variant, depends on.

        Runs that read rows of other tasks get their names, `training_tasks`. Runs that predict
        while they train get the settings of their method, `completion`.
        """
        run = self.experiment.settings.replay.resolve(strategy)
        return self._replay_parameters(run, task)

    def training_tasks(self, task: str) -> list[str]:
        """The tasks whose rows a task is predicted from: never itself."""
        splits = () if self.experiment.settings.replay.tasks == "all" else ("train",)
        return [name for name in self.experiment.names(*splits) if name != task]

    def _replay_parameters(self, run: ReplayRun, task: str) -> dict[str, Any]:
        """The settings that a fine-tune with replay depends on."""
        parameters = run.parameters(prompt_kl=self._has_prompt_kl(run))
        if run.reads_training_rows:
            parameters["training_tasks"] = self.training_tasks(task)
        if run.chooses_during_training and (options := self.method_options(run.prediction)):
            parameters["completion"] = options
        return parameters

    def method_options(self, method: str) -> dict[str, dict[str, Any]]:
        """The settings of a completion method, by its name; empty if it has none."""
        options = self.experiment.settings.completion.options()
        return {method: options[method]} if method in options else {}

    def probes_read(self, method: str) -> int:
        """Number of the task's own examples that a prediction for replay reads."""
        return 0 if method in WITHOUT_PROBES else self.experiment.settings.replay.probes

    def _has_prompt_kl(self, run: ReplayRun) -> bool:
        """Whether a run with a stored teacher also has a live one, for KL at the prompts."""
        if run.teacher != "stored":
            return False
        recipes = [self.experiment.recipe(model) for model in self.experiment.settings.models]
        return any(run.apply_to(recipe).prompt_kl for recipe in recipes)

    def replay_recipe(self, model: str, task: str, strategy: str) -> dict[str, Any]:
        """The recipe of a replay run: the task's, with the changes of a variant."""
        run = self.experiment.settings.replay.resolve(strategy)
        recipe = run.apply_to(self.experiment.recipe(model)).of_result()
        # A variant may have such steps although the experiment has none, or none although it has.
        if recipe["group_steps"] or self.experiment.settings.recipe.group_steps:
            recipe["group"] = self.experiment.tasks[task].group
        return recipe

    def earlier_parameter(self, output: str, recorded: str) -> str:
        """The recorded parameter of today for one of an earlier version.

        Earlier versions recorded with a recipe whether weights are kept, and with a replay run
        settings that play no part in it.
        """
        # Snakemake records a parameter as Python writes it.
        if recorded.startswith("{'version': "):
            return re.sub(", 'keep_weights': (True|False)", "", recorded)
        run = self._run_of(output)
        if run is None or not recorded.startswith("{"):
            return recorded
        value = ast.literal_eval(recorded)
        if "replay" in value:
            of_today = parameters_of_today(run, value["replay"])
            return repr(value | {"replay": of_today})
        return repr(parameters_of_today(run, value)) if "ratio" in value else recorded

    def _run_of(self, output: str) -> str | None:
        """Name of the replay run that an output is made by; None for any other file."""
        if match := re.search(r"/replay/([^/]+)/[^/]+$", output):
            return match[1]
        if match := re.search(r"/sequences/[^/]+/([^/]+)/seed\d+/[^/]+$", output):
            return self.sequence_run(match[1]).name
        return None

    def sequence_run(self, run: str) -> ReplayRun:
        """The replay settings of a run of the section sequences."""
        settings = self.experiment.settings
        return settings.sequences.replay_run(run, settings.replay)

    def sequence_step(self, order: str, run: str, number: int) -> dict[str, Any]:
        """The settings that a step of a sequence depends on.

        The tasks are those up to the step's own, so that a task that is added to the end of an
        order changes no earlier step.
        """
        sequences = self.experiment.settings.sequences
        tasks = sequences.orders[order][:number]
        replay_run = self.sequence_run(run)
        return {
            "tasks": tasks,
            "strategy": replay_run.name,
            "replay": self._replay_parameters(replay_run, tasks[-1]),
            "earlier": sequences.runs[run].earlier,
            "epochs": sequences.epochs.get(tasks[-1]),
        }

    def sequence_recipe(self, model: str, task: str, run: str) -> dict[str, Any]:
        """The recipe of a step: the model's with the changes of the replay run, and the group."""
        recipe = self.sequence_run(run).apply_to(self.experiment.recipe(model))
        return recipe.of_result() | {"group": self.experiment.tasks[task].group}

    def multitask(self, order: str) -> dict[str, Any]:
        """The settings of the fine-tune on all tasks of an order mixed."""
        sequences = self.experiment.settings.sequences
        tasks = sorted(sequences.orders[order])
        epochs = {task: value for task, value in sequences.epochs.items() if task in tasks}
        groups = {task: self.experiment.tasks[task].group for task in tasks}
        values = {"tasks": tasks, "epochs": epochs, "groups": groups}
        # A finished fine-tune without the value stays up to date where it is not asked for.
        replay = self.experiment.settings.replay
        if replay is not None and replay.heldout_kl:
            values["heldout_kl"] = True
        return values

    def sequences(self) -> dict[str, Any]:
        """The section sequences, for the tables."""
        return self.experiment.settings.sequences.model_dump(mode="json")

    def contrasts(self) -> list[dict[str, str]]:
        """The planned comparisons of replay."""
        contrasts = plan_contrasts(self.experiment.settings.replay)
        return [asdict(contrast) for contrast in contrasts]

    def frontiers(self) -> dict[str, list[str]]:
        """Names of the runs that draw each frontier of random replay."""
        return frontier_runs(self.experiment.settings.replay)

    def runs_by_frontier(self) -> dict[str, list[str]]:
        """Names of the runs that are compared with each frontier of one ratio."""
        return runs_by_frontier(self.experiment.settings.replay, self.frontiers())

    def advised_runs(self) -> dict[str, dict[str, Any]]:
        """Name -> settings of the replay runs that the advice chooses from."""
        return {run.name: run.describe() for run in self.experiment.settings.replay.advised_runs()}

    def planned_models(self) -> dict[str, dict[str, Any]]:
        """Model -> recipe, GPUs, threads and pretraining, which the plan multiplies."""
        models = {}
        for name in self.experiment.settings.models:
            models[name] = {
                "recipe": self.experiment.recipe(name).model_dump(mode="json"),
                **self.machine(name),
                "pretraining": self.model(name).get("pretraining"),
            }
        return models

    def _replay_sizes(self) -> dict[str, Any]:
        """The settings of the section replay that decide how many jobs there are."""
        # The plan does not depend on when a training is probed.
        excluded = {"online_after", "closed_loop_after"}
        if self.experiment.settings.replay.advise is None:
            excluded.add("advise")
        return self.experiment.settings.replay.model_dump(mode="json", exclude=excluded)

    def planned_sizes(self) -> dict[str, Any]:
        """The settings that decide how many jobs there are."""
        settings = self.experiment.settings
        similarity = settings.similarity
        replay = settings.replay and self._replay_sizes()
        directions = similarity is not None and "weight_difference" in similarity.associations
        sizes = {
            "tasks": self.task_table(),
            "directions": directions,
            "noise": settings.noise and settings.noise.model_dump(mode="json"),
            "replay": replay,
        }
        # A finished plan without sequences has no such value, and stays up to date without it.
        if settings.sequences is not None:
            sizes["sequences"] = self.sequences()
        return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the results folder of an experiment's YAML file, for the Makefile."""
    parser = argparse.ArgumentParser(prog="python -m lethe.workflow", description=main.__doc__)
    parser.add_argument("file", help="YAML file of the experiment")
    file = parser.parse_args(arguments).file
    try:
        settings = read_yaml(file)
        experiment = settings.get("experiment") if isinstance(settings, dict) else None
        if not isinstance(experiment, str):
            raise LetheError(f"{file}: names no experiment; add `experiment: NAME`")
    except LetheError as error:
        sys.exit(f"error: {error}")
    print(results_folder(experiment))


if __name__ == "__main__":
    main()
