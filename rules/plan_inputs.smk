# What plan.smk asks: how many jobs there will be, of what.


def calibrated_model(wildcards):
    """A model from scratch is tried with random weights: speed does not depend on them."""
    folder = f"{RESULTS}/{wildcards.model}"
    if SETTINGS.models[wildcards.model].source == "scratch":
        return f"{folder}/base/tokenizer.json"
    return f"{folder}/model.json"


def planned_models():
    """Model -> recipe, GPUs, threads, and how it is pretrained if it is."""
    named = {name: types.SimpleNamespace(model=name) for name in MODELS}
    return {
        name: {
            "recipe": recipe(wildcards),
            "gpus": gpus(wildcards),
            "threads": job_threads(wildcards),
            "pretraining": model_settings(wildcards).get("pretraining"),
        }
        for name, wildcards in named.items()
    }


def planned_sizes():
    """What decides how many jobs there are; the numbers of examples are read from upstream."""
    sections = {"noise": NOISE, "replay": SETTINGS.replay}
    return {
        "tasks": task_table(),
        "directions": bool(associations_asked(["weight_difference"])),
        **{
            name: part and part.model_dump(mode="json")
            for name, part in sections.items()
        },
    }


def rows_of_all(files):
    return [
        path for name in MODELS for path in files(types.SimpleNamespace(model=name))
    ]
