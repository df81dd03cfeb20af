"""Reads an experiment with its task table and refuses it with every problem in one message."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lethe.config import Experiment
from lethe.config.model_settings import Recipe, changed
from lethe.config.task_table import NAME, Task, read_tasks
from lethe.errors import ExperimentError

# Folders and files beside those of the models.
TAKEN = ("tasks", "plots", "logs", "upstream.parquet", "corpus.parquet", "report.html")


@dataclass(frozen=True)
class Loaded:
    """A checked experiment: its settings and its tasks in the table's order."""

    settings: Experiment
    tasks: dict[str, Task]
    own: dict[str, str] = field(default_factory=dict)
    """Matrix of the user's own -> its file."""

    def names(self, *splits: str) -> list[str]:
        """Task names, of these splits or all, in the table's order."""
        return [name for name, task in self.tasks.items() if not splits or task.split in splits]

    def recipe(self, model: str) -> Recipe:
        """The recipe with this model's changes applied."""
        return _recipe(self.settings, model)


def _recipe(settings: Experiment, model: str) -> Recipe:
    entry = settings.models[model]
    return changed(settings.recipe, entry.recipe, entry.gpus if entry.strategy == "fsdp" else 1)


def load(config: dict[str, Any], folder: Path = Path(), files: Sequence[Path] = ()) -> Loaded:
    """Checks a whole experiment, paths being relative to `folder`.

    Parameters
    ----------
    files
        The YAML files that `config` was read from: YAML itself keeps the last of two equal keys,
        so that a model named twice would get lost without a word.

    Raises
    ------
    ExperimentError
        With every problem found: key, value seen, what is allowed.
    """
    settings, problems = _settings(config)
    problems += [problem for file in files for problem in repeated_keys(file)]
    tasks: dict[str, Task] = {}
    table = config.get("tasks") if isinstance(config, dict) else None
    if isinstance(table, str):
        tasks, table_problems = read_tasks(folder / table, sources=bool(config.get("models")))
        problems += table_problems
    own: dict[str, str] = {}
    if settings is not None:
        problems += _missing_parts(settings)
        own, matrix_problems = _own_matrices(settings, folder)
        problems += matrix_problems
        problems += _bad_sources(settings, tasks)
        problems += _plain_text_questions(settings)
        recipes, recipe_problems = _recipes(settings)
        problems += recipe_problems
        problems += _unshardable(settings, recipes)
        problems += _bad_sizes(settings, tasks)
        problems += _bad_lengths(settings, recipes)
        problems += _unknown_tasks(settings, tasks)
        problems += _missing_files(settings, tasks, folder)
    if problems:
        raise ExperimentError(f"experiment {_label(config)}", problems)
    return Loaded(settings, tasks, own)


def repeated_keys(path: Path) -> list[str]:
    """Every key that stands twice in one mapping of a YAML file."""
    with open(path, encoding="utf-8") as stream:
        root = yaml.compose(stream, Loader=yaml.SafeLoader)
    return [f"{path}, {problem}" for problem in _repeated(root, ())]


def _repeated(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        where = ".".join((*path, name))
        if name in seen:
            yield f"line {line}: {where} stands twice, first on line {seen[name]}; name it once"
        seen[name] = line
        yield from _repeated(value, (*path, name))


def _label(config: Any) -> str:
    name = config.get("experiment") if isinstance(config, dict) else None
    return repr(name) if name else "without a name"


def _settings(config: Any) -> tuple[Experiment | None, list[str]]:
    try:
        return Experiment.model_validate(config), []
    except ValidationError as error:
        return None, [_explain(problem) for problem in error.errors()]


def _explain(problem: dict[str, Any], within: tuple[str, ...] = ()) -> str:
    """One line for one pydantic error: key, what is allowed, value seen."""
    path = [*within, *(str(part) for part in problem["loc"])]
    # Tags of discriminated unions are part of pydantic's path but not of the user's YAML.
    if path[:1] in (["models"], ["sources"]):
        path[2:3] = []
    key = ".".join(path) or "experiment"
    seen = problem.get("input")
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key (value seen: {seen!r}){_suggestion(path)}"
    if problem["type"] == "missing":
        return f"{key}: is missing and has no default"
    about = problem.get("ctx", {})
    if problem["type"].startswith("union_tag"):
        # The key that says of which kind an entry is.
        key, seen = f"{key}.{about['discriminator'].strip(chr(39))}", about.get("tag")
        if seen is None:
            return f"{key}: is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if "expected_tags" in about:
        message = f"must be one of {about['expected_tags']}"
    if about.get("pattern") == NAME.pattern:
        message = "may only hold letters, digits, _ . - and not begin with . or -"
    if seen == "none":
        message += "; what is left out is written null"
    return f"{key}: {message} (value seen: {_short(seen)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _suggestion(path: list[str]) -> str:
    if path[0] == "models" and path[-2] == "recipe" and path[-1] in Recipe.model_fields:
        return "; it is set for all models, in the experiment's recipe"
    return _closest(path[-1], sorted(_known_keys(Experiment) - {path[-1]}))


def _closest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_keys(settings: type[BaseModel]) -> set[str]:
    properties = [settings.model_json_schema()]
    properties += properties[0].get("$defs", {}).values()
    return {key for part in properties for key in part.get("properties", {})}


def _missing_parts(settings: Experiment) -> list[str]:
    problems = []
    given = [bool(settings.models), settings.matrix is not None, settings.matrices is not None]
    if sum(given) != 1:
        problems.append(
            "models, matrix, matrices: give models to measure, or matrices of your own: one of them"
        )
    if settings.models and settings.upstream is None:
        problems.append("upstream: is missing; models are measured on its examples")
    if not settings.models:
        problems += [
            f"{key}: {why}; remove the section"
            for key, why in _NEEDS_MODELS.items()
            if getattr(settings, key) is not None
        ]
    named = {f"models.{name}": name for name in settings.models}
    named |= {"matrix.name": settings.matrix.name} if settings.matrix else {}
    problems += [
        f"{key}: results/ keeps other files under the name {name!r}; choose another"
        for key, name in named.items()
        if name in TAKEN
    ]
    return problems


_NEEDS_MODELS = {
    "replay": "a matrix has no model to train",
    "noise": "a matrix has no model to train again",
    "similarity": "a matrix has no texts and no model",
    "upstream": "a matrix brings its own examples",
}


def _own_matrices(settings: Experiment, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Name -> file of each matrix of the user's own, and what is wrong with a folder of them."""
    if settings.matrix is not None:
        return {settings.matrix.name: settings.matrix.path}, []
    if settings.matrices is None:
        return {}, []
    where, only = settings.matrices.folder, settings.matrices.only
    there = {path.stem: f"{where}/{path.name}" for path in sorted((folder / where).glob("*.npy"))}
    if not there:
        return {}, [f"matrices.folder: no .npy file in {where}"]
    problems = [
        f"matrices.only: {where} has no {name}.npy{_closest(name, there)}"
        for name in only
        if name not in there
    ]
    found = {name: path for name, path in there.items() if name in only or not only}
    named = {path: path.removesuffix(".npy") + ".meta" for path in found.values()}
    problems += [
        f"matrices.folder: {path} has no {meta}, which names its rows"
        for path, meta in named.items()
        if not (folder / meta).is_file()
    ]
    problems += [
        f"matrices.folder: {path}: rename it: letters, digits, _ . - and none of {', '.join(TAKEN)}"
        for name, path in found.items()
        if not NAME.match(name) or name in TAKEN
    ]
    return found, problems


def split_source(source: str) -> tuple[str, str]:
    """`<source key>:<where>` as its two parts; `where` may be empty."""
    key, _, where = source.partition(":")
    return key, where


def _bad_sources(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    if not settings.models:
        return []
    named = [(f"task {task.name!r}", task.source) for task in tasks.values()]
    named += [
        (f"upstream.domains.{domain}", source)
        for domain, source in (settings.upstream.domains if settings.upstream else {}).items()
    ]
    problems = []
    for user, source in named:
        key, where = split_source(source)
        if key not in settings.sources:
            known = ", ".join(sorted(settings.sources)) or "none"
            problems.append(f"{user}: source {source!r} names no key of sources (known: {known})")
        elif settings.sources[key].kind in ("bigbench", "files") and not where:
            problems.append(f"{user}: source {source!r} lacks the part after ':' ")
        elif ".." in Path(where).parts or Path(where).is_absolute():
            problems.append(f"{user}: source {source!r} leaves its folder")
    return problems


def _plain_text_questions(settings: Experiment) -> list[str]:
    """Exact match wants pairs; what is plain text for certain is said before anything runs."""
    if settings.upstream is None or settings.scoring.exact_match is None:
        return []
    problems = []
    for domain, text in settings.upstream.domains.items():
        source = settings.sources.get(split_source(text)[0])
        joined = getattr(source, "upstream_as", None) == "text"
        if source and (source.kind == "stdlib" or joined or getattr(source, "text", None)):
            hint = "; give its source upstream_as: pairs" if joined else ""
            problems.append(f"upstream.domains.{domain}: scoring.exact_match wants pairs{hint}")
    return problems


def _recipes(settings: Experiment) -> tuple[dict[str, Recipe], list[str]]:
    """Model -> its recipe, of those whose changes fit the experiment's, and what does not fit."""
    recipes: dict[str, Recipe] = {}
    problems = []
    for name in settings.models:
        try:
            recipes[name] = _recipe(settings, name)
        except ValidationError as error:
            problems += [_explain(e, ("models", name, "", "recipe")) for e in error.errors()]
    return recipes, problems


def _unshardable(settings: Experiment, recipes: dict[str, Recipe]) -> list[str]:
    """What a model in shards cannot be trained with."""
    problems = []
    if settings.recipe.processes != 1:
        problems.append("recipe.processes: give the model gpus and strategy: fsdp instead")
    for name, recipe in recipes.items():
        model = settings.models[name]
        if model.strategy != "fsdp":
            continue
        if recipe.optimizer != "adamw":
            problems.append(f"models.{name}.strategy: fsdp needs recipe.optimizer adamw")
        size = recipe.micro_batch or 1
        if recipe.batch % (size * model.gpus):
            problems.append(
                f"models.{name}.gpus: recipe.batch {recipe.batch} is no multiple of {model.gpus} "
                f"gpus x micro_batch {size}"
            )
    return problems


def _bad_sizes(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    problems = []
    splits = [task.split for task in tasks.values()]
    for split, least in (("train", 2), ("test", 1)):
        if tasks and splits.count(split) < least:
            problems.append(f"tasks: needs at least {least} of split {split}")
    if (
        tasks
        and len(settings.models) > 1
        and min(settings.transfer.own_rows) > splits.count("train")
    ):
        problems.append(f"transfer.own_rows: one at most {splits.count('train')}, the train tasks")
    if settings.upstream is None:
        if "stratified" in settings.completion.probe_choice:
            problems.append("completion.probe_choice: stratified needs upstream.domains")
        return problems
    examples, heldout = settings.upstream.examples, settings.upstream.heldout
    smallest = examples // len(settings.upstream.domains)
    if not 0 < round(smallest * heldout) < smallest:
        problems.append(
            f"upstream.examples: {examples} give a domain {smallest}, of which heldout {heldout} "
            "leaves no held-out or no replayable example; give more"
        )
    replayable = examples - round(examples * heldout)
    if max(probes := settings.completion.probes) >= examples:
        problems.append(
            f"completion.probes: each must be below upstream.examples, {examples} (value seen, or "
            f"the default: {probes})"
        )
    if settings.replay and settings.replay.probes > replayable:
        problems.append(f"replay.probes: at most the replayable examples, {replayable}")
    return problems


def _bad_lengths(settings: Experiment, recipes: dict[str, Recipe]) -> list[str]:
    """MPT has no positions beyond its context; the other architectures' are rotary."""
    problems = []
    for name, recipe in recipes.items():
        model = settings.models[name]
        if model.source == "scratch" and model.architecture == "mpt":
            longest = max(recipe.max_tokens, settings.scoring.max_tokens)
            if longest > model.pretraining.context:
                problems.append(
                    f"models.{name}.pretraining.context: at least max_tokens of recipe and "
                    f"scoring, {longest} (value seen: {model.pretraining.context})"
                )
    return problems


def _unknown_tasks(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    named = settings.noise.tasks if settings.noise else []
    groups = {task.group for task in tasks.values()}
    return [
        f"recipe.group_steps: {group!r} is no group of the task table{_closest(group, groups)}"
        for group in settings.recipe.group_steps
        if tasks and group not in groups
    ] + [
        f"noise.tasks: {task!r} is not in the task table{_closest(task, tasks)}"
        for task in named
        if tasks and task not in tasks
    ]


def _missing_files(settings: Experiment, tasks: dict[str, Task], folder: Path) -> list[str]:
    used = [task.source for task in tasks.values()] if settings.models else []
    used += settings.upstream.domains.values() if settings.upstream else []
    wanted = [("matrix.path", settings.matrix.path)] if settings.matrix else []
    if settings.matrix and settings.matrix.examples:
        wanted.append(("matrix.examples", settings.matrix.examples))
    for source in used:
        key, where = split_source(source)
        if (kind := settings.sources.get(key)) and kind.kind == "files":
            wanted += [(f"source {source!r}", path) for path in kind.reads(where, folder)]
        elif kind and kind.kind == "saved":
            wanted.append((f"sources.{key}.path", kind.path))
    if settings.similarity and settings.similarity.encoder.source == "folder":
        wanted.append(
            ("similarity.encoder.path", f"{settings.similarity.encoder.path}/config.json")
        )
    for name, model in settings.models.items():
        if model.source == "folder":
            wanted.append((f"models.{name}.path", f"{model.path}/config.json"))
        if getattr(model, "chat_template", "").endswith(".jinja"):
            wanted.append((f"models.{name}.chat_template", model.chat_template))
    return [
        f"{key}: no such file or folder: {path}"
        for key, path in dict.fromkeys(wanted)
        if not (folder / path).exists()
    ]
