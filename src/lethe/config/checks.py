"""Checks that concern several sections of an experiment, its task table or its files.

Every check returns its problems, one text per problem, which begins with the key concerned.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from lethe.config import Experiment
from lethe.config.analysis_settings import LOGISTIC
from lethe.config.data_settings import Source, even_sizes, split_source
from lethe.config.messages import explain, suggest
from lethe.config.model_settings import Recipe, apply_changes
from lethe.config.replay_settings import FEWEST_TASKS_OF_ADVICE, WITH_SIBLING, Replay, ReplayRun
from lethe.config.sequence_checks import sequence_problems
from lethe.config.task_table import NAME, Task

# Names in results/<experiment>/ beside the folders of the models.
RESERVED_NAMES = ("tasks", "plots", "logs", "associations", "embeddings")
# Files there end like this, so that no model can have the name of one.
RESERVED_ENDINGS = (".parquet", ".csv", ".html", ".txt", ".json")


def model_recipe(settings: Experiment, model: str) -> Recipe:
    """The experiment's recipe with the changes of one model."""
    entry = settings.models[model]
    processes = entry.gpus if entry.strategy == "fsdp" else 1
    return apply_changes(settings.recipe, entry.recipe, processes)


def check_settings(
    settings: Experiment, tasks: dict[str, Task], folder: Path
) -> tuple[dict[str, str], list[str]]:
    """Checks the sections of an experiment against each other, the task table and the files.

    Returns
    -------
    File of each matrix that you measured elsewhere, by its name, and all problems.
    """
    own_matrices, matrix_problems = _own_matrices(settings, folder)
    recipes, recipe_problems = _recipes(settings)
    problems = [
        *_missing_parts(settings),
        *_reserved_names(settings),
        *matrix_problems,
        *_bad_sources(settings, tasks),
        *_plain_text_questions(settings),
        *recipe_problems,
        *_bad_variants(settings, recipes),
        *_missing_gradients(settings),
        *_missing_sibling_of_replay(settings),
        *_missing_embeddings(settings),
        *_unshardable(settings, recipes),
        *_bad_routing(settings, recipes),
        *_bad_sizes(settings, tasks),
        *_bad_lengths(settings, recipes),
        *_unknown_tasks(settings, tasks),
        *sequence_problems(settings, tasks),
        *_missing_files(settings, tasks, folder),
        *_missing_model("sibling", settings, own_matrices, folder),
        *_missing_model("prior", settings, own_matrices, folder),
    ]
    return own_matrices, problems


_NEEDS_MODELS = {
    "replay": "a matrix has no model to train",
    "sequences": "a matrix has no model to train",
    "noise": "a matrix has no model to train again",
    "similarity": "a matrix has no texts and no model",
    "upstream": "a matrix brings its own examples",
}


def _missing_parts(settings: Experiment) -> list[str]:
    problems = []
    origins = [bool(settings.models), settings.matrix is not None, settings.matrices is not None]
    if sum(origins) != 1:
        problems.append(
            "models, matrix, matrices: give models to measure, or matrices of your own: one of them"
        )
    if settings.models and settings.upstream is None:
        problems.append("upstream: is missing; models are measured on its examples")
    if not settings.models:
        for key, reason in _NEEDS_MODELS.items():
            if getattr(settings, key) is not None:
                problems.append(f"{key}: {reason}; remove the section")
        if settings.prediction_changes:
            problems.append(
                "prediction_changes: a matrix has no model whose predictions change; remove the key"
            )
    return problems


def _is_reserved(name: str) -> bool:
    return name in RESERVED_NAMES or name.lower().endswith(RESERVED_ENDINGS)


def _reserved_names(settings: Experiment) -> list[str]:
    names = {f"models.{name}": name for name in settings.models}
    if settings.matrix:
        names["matrix.name"] = settings.matrix.name
    problems = []
    for key, name in names.items():
        if _is_reserved(name):
            problems.append(
                f"{key}: results/ keeps other files under the name {name!r}; choose another"
            )
    return problems


def _own_matrices(settings: Experiment, folder: Path) -> tuple[dict[str, str], list[str]]:
    """File of each of the user's own matrices by name, and the problems of their folder."""
    if settings.matrix is not None:
        return {settings.matrix.name: settings.matrix.path}, []
    if settings.matrices is None:
        return {}, []
    matrices = settings.matrices.folder
    only = settings.matrices.only
    files: dict[str, str] = {}
    for path in sorted((folder / matrices).glob("*.npy")):
        files[path.stem] = f"{matrices}/{path.name}"
    if not files:
        return {}, [f"matrices.folder: no .npy file in {matrices}"]
    problems = []
    for name in only:
        if name not in files:
            problems.append(f"matrices.only: {matrices} has no {name}.npy{suggest(name, files)}")
    selected = {name: path for name, path in files.items() if name in only or not only}
    for name, path in selected.items():
        meta = path.removesuffix(".npy") + ".meta"
        if not (folder / meta).is_file():
            problems.append(f"matrices.folder: {path} has no {meta}, which names its rows")
        if not NAME.fullmatch(name) or _is_reserved(name):
            problems.append(
                f"matrices.folder: {path}: rename it: letters, digits, _ . - and none of "
                f"{', '.join(RESERVED_NAMES + RESERVED_ENDINGS)}"
            )
    return selected, problems


def _bad_sources(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    if not settings.models:
        return []
    users = {f"task {task.name!r}": task.source for task in tasks.values()}
    if settings.upstream:
        for domain, source in settings.upstream.domains.items():
            users[f"upstream.domains.{domain}"] = source
    return source_problems(settings.sources, users)


def source_problems(sources: Mapping[str, Source], users: Mapping[str, str]) -> list[str]:
    """Problems of the sources that tasks and domains name.

    Parameters
    ----------
    users
        Task or domain -> its source, written <source key>:<where>.
    """
    problems = []
    for user, source in users.items():
        key, where = split_source(source)
        if key not in sources:
            keys = ", ".join(sorted(sources)) or "none"
            problems.append(f"{user}: source {source!r} names no key of sources (known: {keys})")
        elif sources[key].kind in ("bigbench", "files") and not where:
            problems.append(
                f"{user}: source {source!r} lacks the part after ':'; write {key}:<task or file>"
            )
        elif getattr(sources[key], "by", None) is not None:
            continue  # Then it is a value of a field.
        elif ".." in Path(where).parts or Path(where).is_absolute():
            problems.append(
                f"{user}: source {source!r} leaves its folder; write a path below it, without '..'"
            )
    return problems


def _plain_text_questions(settings: Experiment) -> list[str]:
    """Domains that are surely plain text although exact match needs pairs."""
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
    """The recipe of each model whose changes fit the experiment's, and problems of the others."""
    recipes: dict[str, Recipe] = {}
    problems = []
    for name in settings.models:
        try:
            recipes[name] = model_recipe(settings, name)
        except ValidationError as error:
            for problem in error.errors():
                # explain leaves the third part out: in a model's settings, it is the source.
                problems.append(explain(problem, within=("models", name, "", "recipe")))
    return recipes, problems


def _bad_variants(settings: Experiment, recipes: dict[str, Recipe]) -> list[str]:
    """Variants of replay whose recipe does not go together with that of every model."""
    problems = []
    for name in settings.replay.variants if settings.replay else []:
        run = settings.replay.resolve(name)
        for recipe in recipes.values():
            try:
                run.apply_to(recipe)
            except ValidationError as error:
                for problem in error.errors():
                    where = ("replay", "variants", name, "recipe")
                    problems.append(explain(problem, within=where))
            if recipe.group_steps and "steps" in run.recipe_changes:
                problems += _steps_of_groups_stay(f"replay.variants.{name}", run.recipe_changes)
    return list(dict.fromkeys(problems))


def _steps_of_groups_stay(key: str, changes: Mapping[str, object]) -> list[str]:
    """Steps that are changed while the recipe's steps of single groups stay as they are."""
    if "group_steps" in changes:
        return []
    return [
        f"{key}.recipe.steps: recipe.group_steps comes before it, so tasks of its groups keep "
        f"their steps (value seen: {changes['steps']}); give {key}.recipe.group_steps as well, or "
        "{} there for the same steps in all groups"
    ]


def _missing_gradients(settings: Experiment) -> list[str]:
    """A strategy that chooses by gradients, without the association that has them."""
    similarity = settings.similarity
    if settings.replay is None or (similarity and "gradient" in similarity.associations):
        return []
    problems = []
    for run in settings.replay.runs():
        if run.reads_gradients:
            key = _key_of_run(settings.replay, run)
            problems.append(
                f"{key}: strategy {run.strategy} needs 'gradient' in similarity.associations"
            )
    return problems


def _key_of_run(replay: Replay, run: ReplayRun) -> str:
    """The key under which the experiment's file has this run."""
    return "replay.strategies" if run.name in replay.strategies else f"replay.variants.{run.name}"


def _missing_sibling_of_replay(settings: Experiment) -> list[str]:
    """The strategy `gaussian_sibling` without the model whose rows it reads."""
    if settings.replay is None or settings.completion.sibling is not None:
        return []
    problems = []
    for run in settings.replay.runs():
        if run.strategy == WITH_SIBLING:
            key = _key_of_run(settings.replay, run)
            problems.append(
                f"{key}: strategy {WITH_SIBLING} needs completion.sibling, another model that "
                "learned the same tasks"
            )
    return problems


def _unshardable(settings: Experiment, recipes: dict[str, Recipe]) -> list[str]:
    """Settings that a model in shards cannot be trained with."""
    problems = []
    if settings.recipe.processes != 1:
        problems.append("recipe.processes: give the model gpus and strategy: fsdp instead")
    for name, recipe in recipes.items():
        model = settings.models[name]
        if model.strategy != "fsdp":
            continue
        for run_name, run_recipe in _recipes_of_runs(settings, recipe).items():
            if run_recipe.memory is not None or run_recipe.router is not None:
                problems.append(
                    f"models.{name}.strategy: fsdp does not go with recipe.memory and "
                    f"recipe.router, which {run_name} has; use strategy single or remove them"
                )
            if run_recipe.optimizer != "adamw":
                problems.append(
                    f"models.{name}.strategy: fsdp needs recipe.optimizer adamw, but "
                    f"{run_name} has {run_recipe.optimizer}"
                )
            size = run_recipe.micro_batch or 1
            if run_recipe.batch % (size * model.gpus):
                problems.append(
                    f"models.{name}.gpus: the batch of {run_name}, {run_recipe.batch}, is no "
                    f"multiple of {model.gpus} gpus x micro_batch {size}"
                )
    return problems


def _recipes_of_runs(settings: Experiment, recipe: Recipe) -> dict[str, Recipe]:
    """A model's recipe, and those of its replay variants that change it."""
    recipes = {"the recipe": recipe}
    if settings.replay is not None:
        for run in settings.replay.runs():
            if run.recipe_changes:
                try:
                    recipes[f"replay.variants.{run.name}"] = run.apply_to(recipe)
                except ValidationError:
                    # Reported with the variants.
                    continue
    return recipes


def _bad_routing(settings: Experiment, recipes: dict[str, Recipe]) -> list[str]:
    """Settings that need a model's weights alone, where a memory or a router belongs to them."""
    problems = []
    for name, recipe in recipes.items():
        if recipe.router is not None:
            problems += _without_router(settings, name)
        if recipe.keep_weights and (recipe.memory is not None or recipe.router is not None):
            problems.append(
                f"recipe.keep_weights: the weights of {name} are of no use without their memory or "
                "router, which no model file holds; set it to false"
            )
        similarity = settings.similarity
        if recipe.memory and similarity and "weight_difference" in similarity.associations:
            problems.append(
                "similarity.associations: weight_difference compares the weights of a model, and "
                f"the method memory of {name} changes none; remove weight_difference"
            )
        problems += _bad_routing_of_runs(settings, recipe)
    return list(dict.fromkeys(problems))


def _without_router(settings: Experiment, model: str) -> list[str]:
    """Measurements of a model's weights, which a router is no part of."""
    problems = []
    if settings.prediction_changes:
        problems.append(
            f"prediction_changes: {model} has recipe.router, and a router's choice is not part "
            "of the model whose predictions are compared; remove one of the two"
        )
    if settings.noise is not None and settings.noise.measurements:
        problems.append(
            f"noise.measurements: {model} has recipe.router, and the weights alone are measured "
            "again; set it to 0"
        )
    return problems


def _bad_routing_of_runs(settings: Experiment, recipe: Recipe) -> list[str]:
    """Replay runs that do not go with their memory or router."""
    problems = []
    for run in settings.replay.runs() if settings.replay else []:
        try:
            run_recipe = run.apply_to(recipe)
        except ValidationError:
            # Reported with the variants.
            continue
        if run_recipe.router is not None and run.chooses_during_training:
            problems.append(
                f"replay: {run.name} measures the model during the training (strategy "
                f"{run.strategy}), which a router is no part of; use another strategy, or no router"
            )
        if run_recipe.routing is not None and isinstance(run.interpolate, list):
            problems.append(
                f"replay: {run.name} has several shares in `interpolate`, which do not go with a "
                "memory or router; give one share"
            )
    return problems


def _bad_sizes(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    problems = []
    if tasks:
        problems += _too_few_tasks(settings, tasks)
    problems += _logistic_methods_of_nats(settings)
    if settings.upstream is None:
        if "stratified" in settings.completion.probe_choice:
            problems.append("completion.probe_choice: stratified needs upstream.domains")
        return problems
    if settings.upstream.pool is not None:
        # The file holds its examples and splits; their numbers are not settings.
        return problems + _trained_on_a_pool(settings)
    examples = settings.upstream.examples
    heldout = settings.upstream.heldout
    smallest = examples // len(settings.upstream.domains)
    if not 0 < round(smallest * heldout) < smallest:
        problems.append(
            f"upstream.examples: {examples} give a domain {smallest}, of which heldout {heldout} "
            "leaves no held-out or no replayable example; give more"
        )
    probes = settings.completion.probes
    if max(probes) >= examples:
        problems.append(
            f"completion.probes: each must be below upstream.examples, {examples} (value seen, or "
            f"the default: {probes})"
        )
    sizes = even_sizes(examples, len(settings.upstream.domains))
    replayable = sum(size - round(size * heldout) for size in sizes)
    if settings.replay and settings.replay.probes > replayable:
        problems.append(
            f"replay.probes: must be at most {replayable}, the number of replayable examples "
            f"(value seen, or the default: {settings.replay.probes})"
        )
    return problems


def _logistic_methods_of_nats(settings: Experiment) -> list[str]:
    """Methods and choices of probes that need a Z of 0s and 1s, for models measured in nats."""
    if not settings.models or settings.scoring.exact_match is not None:
        return []
    values = {
        "completion.methods": settings.completion.methods,
        "completion.probe_choice": settings.completion.probe_choice,
    }
    if settings.replay is not None:
        values["replay.probe_choice"] = [settings.replay.probe_choice]
    problems = []
    for key, names in values.items():
        logistic = [name for name in names if name in LOGISTIC]
        if logistic:
            other = "gaussian" if key == "completion.methods" else "a_optimal"
            problems.append(
                f"{key}: {', '.join(logistic)} needs scoring.exact_match; for forgetting in nats "
                f"use {other}"
            )
    return problems


def _trained_on_a_pool(settings: Experiment) -> list[str]:
    """Models that are pretrained here need whole documents, which a pool does not hold."""
    problems = []
    for name, model in settings.models.items():
        if model.source == "scratch":
            problems.append(
                f"models.{name}.source: scratch needs upstream.domains, because it is pretrained "
                "on their documents; a pool has examples only"
            )
    return problems


def _too_few_tasks(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    problems = []
    splits = [task.split for task in tasks.values()]
    for split, least in {"train": 2, "test": 1}.items():
        if splits.count(split) < least:
            problems.append(f"tasks: needs at least {least} of split {split}")
    problems += _too_few_for_advice(settings, tasks)
    most = splits.count("train")
    if len(settings.models) > 1 and min(settings.transfer.own_rows) > most:
        problems.append(
            f"transfer.own_rows: at least one number must be at most {most}, the number of train "
            f"tasks (value seen, or the default: {settings.transfer.own_rows})"
        )
    return problems


def _too_few_for_advice(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    """An advice rests on the replay runs of other tasks, and a line needs a few of them."""
    if settings.replay is None or settings.replay.advise is None:
        return []
    tested = len(settings.replay.tested_tasks(tasks))
    fewest = FEWEST_TASKS_OF_ADVICE + 1
    if tested >= fewest:
        return []
    hint = "; replay.tasks: all tests all tasks" if tested < len(tasks) else ""
    return [
        f"replay.advise: needs replay runs of at least {fewest} tasks, because each "
        f"is advised from the others (this experiment: {tested}){hint}"
    ]


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
    if not tasks:
        return []
    problems = []
    groups = {task.group for task in tasks.values()}
    for key, named in _groups_with_steps(settings).items():
        for group in named:
            if group not in groups:
                problems.append(
                    f"{key}: {group!r} is no group of the task table{suggest(group, groups)}"
                )
    for task in settings.noise.tasks if settings.noise else []:
        if task not in tasks:
            problems.append(f"noise.tasks: {task!r} is not in the task table{suggest(task, tasks)}")
    return problems


def _groups_with_steps(settings: Experiment) -> dict[str, list[str]]:
    """Names of the groups that have steps of their own, by the key that gives them."""
    named = {"recipe.group_steps": list(settings.recipe.group_steps)}
    for name in settings.replay.variants if settings.replay else []:
        changes = settings.replay.resolve(name).recipe_changes
        named[f"replay.variants.{name}.recipe.group_steps"] = list(changes.get("group_steps", {}))
    return named


def _missing_files(settings: Experiment, tasks: dict[str, Task], folder: Path) -> list[str]:
    """Files and folders that the experiment names and that do not exist, or cannot be inputs."""
    paths = _paths_of_sources(settings, tasks, folder)
    if settings.matrix:
        paths.append(("matrix.path", settings.matrix.path))
        if settings.matrix.examples:
            paths.append(("matrix.examples", settings.matrix.examples))
    if settings.own_texts:
        section = "matrix" if settings.matrix else "matrices"
        paths.append((f"{section}.texts", settings.own_texts))
    if settings.similarity and settings.similarity.encoder.source == "folder":
        encoder = settings.similarity.encoder.path
        paths.append(("similarity.encoder.path", f"{encoder}/config.json"))
    for name, model in settings.models.items():
        if model.source == "folder":
            paths.append((f"models.{name}.path", f"{model.path}/config.json"))
        if getattr(model, "chat_template", "").endswith(".jinja"):
            paths.append((f"models.{name}.chat_template", model.chat_template))
    problems = []
    if settings.matrices:
        problems += _braces("matrices.folder", settings.matrices.folder)
    for key, path in dict.fromkeys(paths):
        if braces := _braces(key, path):
            problems += braces
        elif not _exists(folder / path):
            problems.append(f"{key}: no such file or folder: {path}{_adapter_hint(folder / path)}")
    return problems


def _braces(key: str, path: str) -> list[str]:
    if "{" not in path and "}" not in path:
        return []
    return [
        f"{key}: the name {path} holds a brace, which Snakemake reads as a wildcard; rename the "
        "file or folder"
    ]


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; False if its name is too long to be one."""
    try:
        return path.exists()
    except OSError:
        return False


def _missing_embeddings(settings: Experiment) -> list[str]:
    """The embeddings that completion reads are those of an association of the experiment."""
    embeddings = settings.completion.embeddings
    names = settings.similarity.associations if settings.similarity else []
    if embeddings is None or embeddings in names:
        return []
    return [
        f"completion.embeddings: the embeddings {embeddings!r} are not computed; add "
        f"{embeddings!r} to similarity.associations (value seen: {list(names)})"
    ]


def _missing_model(
    key: str, settings: Experiment, own_matrices: Mapping[str, str], folder: Path
) -> list[str]:
    """The sibling and the prior must be models of this experiment or have a matrix already."""
    value = getattr(settings.completion, key)
    if value is None:
        return []
    experiment, model = value.split("/")
    if experiment == settings.experiment:
        names = [*settings.models, *own_matrices]
        if model in names:
            return []
        return [
            f"completion.{key}: {model!r} is no model of this experiment{suggest(model, names)}"
        ]
    matrix = f"results/{experiment}/{model}/Z.parquet"
    if (folder / matrix).is_file():
        return []
    return [
        f"completion.{key}: no such file: {matrix}; run the experiment {experiment!r} first, or "
        f"name another <experiment>/<model> (value seen: {value!r})"
    ]


def _adapter_hint(path: Path) -> str:
    """The reason why a model's folder has no config.json, if it holds an adapter instead."""
    adapter = path.with_name("adapter_config.json")
    if path.name != "config.json" or not adapter.exists():
        return ""
    try:
        base = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"; the folder holds an adapter of {base or 'another model'}, not a model: merge it into "
        "its base with peft's merge_and_unload() and save that"
    )


def _paths_of_sources(
    settings: Experiment, tasks: dict[str, Task], folder: Path
) -> list[tuple[str, str]]:
    """Key and path of every file that the tasks' and the domains' sources read."""
    used = [task.source for task in tasks.values()] if settings.models else []
    if settings.upstream:
        used += settings.upstream.domains.values()
    paths = []
    if settings.upstream and settings.upstream.pool is not None:
        paths.append(("upstream.pool", settings.upstream.pool))
    for text in used:
        key, where = split_source(text)
        source = settings.sources.get(key)
        if source is None:
            continue
        if source.kind == "files":
            for path in source.reads(where, folder):
                paths.append((f"source {text!r}", path))
        elif source.kind == "saved":
            paths.append((f"sources.{key}.path", source.path))
    return paths
