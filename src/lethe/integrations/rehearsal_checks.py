"""Clear errors for a rehearsal that cannot work."""

from typing import Any

from lethe.engine.batches import model_of
from lethe.engine.loading_report import check_vocabulary, positions_of
from lethe.errors import LetheError
from lethe.integrations.probe import tokenizer_of


def check_trainer(trainer: Any) -> None:
    """Refuses trainers that a rehearsal cannot be attached to.

    Raises
    ------
    LetheError
        With the cause and the remedy.
    """
    for name in ("training_step", "compute_loss", "accelerator", "args", "model"):
        if not hasattr(trainer, name):
            raise LetheError(
                f"Rehearsal: {type(trainer).__name__} is no Trainer of transformers (it has no "
                f"{name}); attach to a Trainer, or to a trainer built on it such as trl's "
                "SFTTrainer"
            )
    if hasattr(trainer, "lethe_rehearsal"):
        raise LetheError(
            "Rehearsal: this trainer has a Rehearsal already (trainer.lethe_rehearsal); call its "
            "detach() before you attach another one"
        )
    if trainer.model is None:
        raise LetheError(
            "Rehearsal: the trainer holds no model yet; make it with model=... so that the base "
            "model is known"
        )
    arguments = trainer.args
    if getattr(trainer, "is_fsdp_enabled", False) or getattr(
        trainer, "is_deepspeed_enabled", False
    ):
        raise LetheError(
            "Rehearsal: models that are sharded over processes (FSDP, DeepSpeed) are not "
            "supported; train with data parallelism (torchrun), or with LoRA on fewer GPUs"
        )
    if arguments.n_gpu > 1:
        raise LetheError(
            f"Rehearsal: one process uses {arguments.n_gpu} GPUs (DataParallel); start one process "
            "per GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    if arguments.fp16:
        raise LetheError(
            "Rehearsal: fp16 is not supported, because the divergence of large logits overflows in "
            "it; set bf16=True, or neither"
        )


def check_options(
    *,
    replay: Any,
    weight: float,
    objective: str,
    dose: str,
    examples_per_step: int,
    prompt_kl: float | None,
    prompt_kl_positions: int | None,
    teacher_dtype: str | None,
    max_tokens: int | None,
    seed: int | None,
) -> None:
    """Refuses impossible values of a rehearsal's options.

    Raises
    ------
    LetheError
        With the cause and the remedy.
    """
    if replay is None and not prompt_kl:
        raise LetheError(
            "Rehearsal: there is nothing to add; give a replay file, or a weight prompt_kl=1, "
            "which needs no file"
        )
    for name, value in (("weight", weight), ("prompt_kl", prompt_kl)):
        if value is not None and not 0 <= value < float("inf"):
            raise LetheError(f"Rehearsal: {name} is {value}; give a number from 0 on")
    choices = (
        ("objective", objective, ("kl", "text")),
        ("dose", dose, ("step", "token")),
        ("teacher_dtype", teacher_dtype, (None, "float32", "bfloat16")),
    )
    for name, value, allowed in choices:
        if value not in allowed:
            names = ", ".join(map(str, allowed))
            raise LetheError(f"Rehearsal: {name} is {value!r}; give one of {names}")
    # Nothing comes before the first token, so that one token has no loss.
    counts = (
        ("examples_per_step", examples_per_step, 1),
        ("prompt_kl_positions", prompt_kl_positions, 1),
        ("max_tokens", max_tokens, 2),
    )
    for name, value, least in counts:
        # NaN and infinity are refused, too.
        if value is not None and not (value >= least and value == value // 1):
            raise LetheError(f"Rehearsal: {name} is {value}; give a whole number from {least} on")
    if seed is not None and (seed < 0 or seed != int(seed)):
        raise LetheError(f"Rehearsal: seed is {seed}; give a whole number from 0 on")
    if dose == "token" and replay is None:
        raise LetheError(
            "Rehearsal: dose is 'token', but there is no replay file whose tokens could count; "
            "give one, or leave dose out"
        )
    if prompt_kl_positions is not None and not prompt_kl:
        raise LetheError(
            f"Rehearsal: prompt_kl_positions is {prompt_kl_positions}, but there is no prompt_kl; "
            "give its weight, such as prompt_kl=1"
        )


def check_model(model: Any) -> None:
    """Refuses models that are no language models, learn virtual tokens, or move their own base.

    Raises
    ------
    LetheError
        With the cause and the remedy.
    """
    peft = getattr(model, "active_peft_config", None)
    if getattr(peft, "is_prompt_learning", False):
        raise LetheError(
            "Rehearsal: the model learns virtual tokens (PEFT's prompt learning), which replayed "
            "examples would not read; use LoRA or another kind of adapter"
        )
    trained = _trained_weights_of_the_base(model)
    if trained:
        raise LetheError(
            f"Rehearsal: beside the adapters, {len(trained)} weights of the base model are "
            f"trained, such as {trained[0]}, so the model without its adapters does not stay the "
            "base model; set bias='none' in the LoRA configuration, and name modules that are to "
            "be trained in its modules_to_save"
        )
    network = model_of(model)
    if not hasattr(network, "get_output_embeddings") or network.get_output_embeddings() is None:
        raise LetheError(
            f"Rehearsal: {type(network).__name__} has no output layer over a vocabulary, so it is "
            "no language model; load it with AutoModelForCausalLM"
        )


def longest_example(arguments: Any, model: Any, max_tokens: int | None, default: int) -> int:
    """Tokens of the longest replayed example.

    Parameters
    ----------
    arguments
        The trainer's arguments, whose `max_length` is taken if `max_tokens` is None.
    max_tokens
        The length that is wanted; None: as long as the trainer's own examples.
    default
        The length if the trainer names none either.

    Raises
    ------
    LetheError
        If the model has fewer positions than `max_tokens`.
    """
    positions = positions_of(model)
    if max_tokens is not None:
        if positions is not None and max_tokens > positions:
            raise LetheError(
                f"Rehearsal: max_tokens is {max_tokens}, but the model has {positions} positions; "
                f"give at most {positions}, or leave it out"
            )
        return int(max_tokens)
    limits = [
        getattr(arguments, "max_length", None) or default,
        getattr(model_of(model).config, "max_position_embeddings", None),
        positions,
    ]
    return min(limit for limit in limits if limit)


def _trained_weights_of_the_base(model: Any) -> list[str]:
    """Trainable weights of a PEFT model that are still there when its adapters are off."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    if prefix is None or not hasattr(model, "disable_adapter"):
        return []
    of_adapters = (prefix, ".modules_to_save.", ".trainable_tokens_")
    names = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(part in name for part in of_adapters):
            names.append(name)
    return names


def tokenizer_for(trainer: Any, tokenizer: Any) -> Any:
    """The tokenizer of replayed examples, compared with the model's and the trainer's.

    Raises
    ------
    LetheError
        If there is none, or it has another vocabulary than the trainer's, or more tokens than the
        model has embeddings.
    """
    expected = tokenizer_of(trainer.processing_class)
    tokenizer = tokenizer or expected
    if tokenizer is None:
        raise LetheError(
            "Rehearsal: the trainer has no tokenizer; give the model's as tokenizer=..."
        )
    if expected is not None and expected.get_vocab() != tokenizer.get_vocab():
        raise LetheError(
            "Rehearsal: tokenizer=... has another vocabulary than the trainer's processing class, "
            "so replayed and new examples would be read differently; leave tokenizer out"
        )
    model = model_of(trainer.model)
    check_vocabulary(model, tokenizer, getattr(model, "name_or_path", ""))
    return tokenizer
