"""Keeps a model's knowledge while a Trainer fine-tunes it: replay terms in every step's loss."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.batches import collate
from lethe.engine.objectives import Objective, Part, ReplayTerm, Step
from lethe.engine.teacher import LiveTeacher, frozen_copy, has_sliceable_head
from lethe.errors import LetheError
from lethe.files import read_json, write_json
from lethe.integrations.chat_rows import NO_LOSS
from lethe.integrations.prompt_divergence import (
    PromptDivergence,
    caught_states,
    count_labels,
    documents,
    feeds_its_head,
    prompt_mask,
    sample_positions,
)
from lethe.integrations.rehearsal_checks import (
    check_model,
    check_options,
    check_trainer,
    longest_example,
    tokenizer_for,
)
from lethe.integrations.replay_batches import ReplayBatches

logger = logging.getLogger(__name__)

# File in a checkpoint's folder that describes the rehearsal.
SETTINGS_FILE = "rehearsal.json"
# Tokens of the longest replay example if the trainer names no length.
MAX_TOKENS = 1024
# Values per tensor of the base model that its fingerprint covers.
_FINGERPRINT_VALUES = 64


class Rehearsal(TrainerCallback):
    """Adds replay to the steps of transformers' Trainer, or of a trainer built on it such as trl's.

    Every optimizer step gets the loss of a few replayed examples: the divergence KL(base || model)
    at the tokens that carry loss, or the cross-entropy of these tokens. `weight` and `dose` say how
    much it counts beside the loss of the new examples. This is the workflow's own loss
    (`lethe.engine.objectives`). With `prompt_kl`, each step gets the KL at the prompts of the new
    examples as well, which needs no replay file.

        rehearsal = Rehearsal.attach(trainer, "replay.parquet", weight=4, objective="kl")
        trainer.train()

    The base model is the model that the trainer holds when you attach. A PEFT model is its own
    base: its adapters are switched off while the base is needed. For full fine-tuning a frozen
    copy is made.

    `replay/loss` (the replay term with its weight), `replay/kl` (mean KL at replayed tokens) and
    `replay/prompt_kl` (mean KL at prompts) are logged beside `loss`, in nats. `loss` remains that
    of the new examples.

    Raises
    ------
    LetheError
        If a value is impossible, the file holds nothing that can be replayed, the tokenizer or the
        model do not fit, the trainer is no Trainer or has a Rehearsal already, or the training is
        set up in a way that is not supported.
    """

    def __init__(
        self,
        trainer: Any,
        replay: Path | str | None = None,
        *,
        weight: float = 4.0,
        objective: Literal["kl", "text"] = "kl",
        dose: Literal["step", "token"] = "step",
        examples_per_step: int = 2,
        prompt_kl: float | None = None,
        prompt_kl_positions: int | None = None,
        teacher_dtype: Literal["float32", "bfloat16"] | None = None,
        max_tokens: int | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
    ):
        check_trainer(trainer)
        check_options(
            replay=replay,
            weight=weight,
            objective=objective,
            dose=dose,
            examples_per_step=examples_per_step,
            prompt_kl=prompt_kl,
            prompt_kl_positions=prompt_kl_positions,
            teacher_dtype=teacher_dtype,
            max_tokens=max_tokens,
            seed=seed,
        )
        examples_per_step = int(examples_per_step)
        arguments = trainer.args
        model = trainer.model
        check_model(model)
        self.trainer = trainer
        self.weight = float(weight)
        self.objective = objective
        self.dose = dose
        self.prompt_kl = prompt_kl
        self.prompt_kl_positions = prompt_kl_positions
        self.seed = arguments.seed if seed is None else int(seed)
        self.history: list[dict[str, float]] = []
        self.replay: ReplayBatches | None = None
        longest: int | None = None
        if replay is not None:
            longest = longest_example(arguments, model, max_tokens, MAX_TOKENS)
            self.replay = ReplayBatches.read(
                replay,
                tokenizer_for(trainer, tokenizer),
                max_tokens=longest,
                per_step=examples_per_step,
                seed=self.seed,
            )
        term = ReplayTerm(
            examples=() if self.replay is None else self.replay.examples,
            objective=objective,
            weight=self.weight,
            dose=dose,
        )
        # Names as in recipes and in scoring settings.
        training_dtype = "bfloat16" if arguments.bf16 else "float32"
        self._precision = "autocast" if arguments.bf16 else "float32"
        short_example = _short_example(model, term)
        teacher: LiveTeacher | None = None
        if term.needs_teacher or prompt_kl:
            teacher = _make_teacher(model, short_example, teacher_dtype)
        recipe = Recipe(average="token", dtype=training_dtype)
        plain = teacher is not None and teacher.plain
        self._terms = Objective(recipe, term, replay_teacher=teacher, plain=plain)
        self._prompt: PromptDivergence | None = None
        if prompt_kl:
            batch = collate([short_example], next(model.parameters()).device)
            reads_last_states = plain and feeds_its_head(model, batch)
            self._prompt = PromptDivergence(teacher, reads_last_states)
        self.settings = {
            "weight": self.weight,
            "objective": objective,
            "dose": dose,
            "examples_per_step": examples_per_step,
            "prompt_kl": prompt_kl,
            "prompt_kl_positions": prompt_kl_positions,
            "teacher_dtype": teacher_dtype,
            "seed": self.seed,
            "replay": None if self.replay is None else self.replay.digest,
            "max_tokens": longest,
            "base": _base_fingerprint(model if teacher is None else teacher.model),
        }
        # Sums of the logged terms, and optimizer steps, since the last log.
        self._sums: dict[str, torch.Tensor] = {}
        self._steps = 0
        # Where the training is.
        self._training = False
        self._first_step = True
        self._resumed_from: Path | None = None
        self._micro_batch = 0
        self._prompts_of_step = 0
        # What the mean loss of the step's new tokens is multiplied by; always 1 with dose "step".
        self._share_of_new = 1.0
        # What the prompts have added to the loss of the last micro-batch.
        self._prompt_loss: torch.Tensor | None = None

    @classmethod
    def attach(cls, trainer: Any, replay: Path | str | None = None, **options: Any) -> Self:
        """Makes a rehearsal and connects it with a trainer, before `trainer.train()`.

        Parameters
        ----------
        trainer
            A Trainer or SFTTrainer that holds the base model.
        replay
            Table of examples as the workflow's upstream.parquet: `lethe pool` writes one. Held-out
            examples in it are never replayed. None: `prompt_kl` alone.
        weight
            With `dose="step"` the weight of the mean over a step's replayed tokens, with `"token"`
            that of a replayed token beside a new one.
        objective
            `kl`: KL(base || model) at the replayed tokens. `text`: their cross-entropy.
        dose
            `step`: a step's loss is the trainer's own, plus `weight` times the mean over the
            replayed tokens. `token`: it is the weighted mean over the step's new and replayed
            tokens, so a step with many new tokens pays less for replay. The trainer's own loss has
            to be a mean over the labels of its batches.
        examples_per_step
            Replayed examples per optimizer step, over all processes.
        prompt_kl
            Weight of the mean KL(base || model) at the new examples' prompt tokens. None: no such
            term.
        prompt_kl_positions
            Number of random positions per example at which `prompt_kl` is taken. It costs less
            than all positions, and is the same on average. None: all positions.
        teacher_dtype
            Type of the frozen copy's weights; None: as the model's. A PEFT model needs no copy.
        max_tokens
            Longest replayed example in tokens, at least 2 and at most the model's positions. None:
            the trainer's `max_length`, or 1024, or fewer if the model reads no more.
        tokenizer
            Tokenizer of the model. None: the processing class of the trainer.
        seed
            Seed of the order of replayed examples and of random positions. None: the trainer's.
        """
        rehearsal = cls(trainer, replay, **options)
        rehearsal._connect()
        return rehearsal

    def detach(self) -> None:
        """Gives the trainer its own steps back, and forgets the base model."""
        trainer = self.trainer
        for name, method in self._original.items():
            vars(trainer).pop(name, None)
            # Something else had been put in the place of the trainer's own method before.
            if getattr(trainer, name) != method:
                setattr(trainer, name, method)
        trainer.remove_callback(self)
        del trainer.lethe_rehearsal
        self._terms.replay_teacher = None
        self._prompt = None

    def _connect(self) -> None:
        trainer = self.trainer
        self._original = {
            "train": trainer.train,
            "training_step": trainer.training_step,
            "compute_loss": trainer.compute_loss,
            "get_batch_samples": trainer.get_batch_samples,
            "log": trainer.log,
        }
        trainer.train = self._train
        trainer.training_step = self._training_step
        trainer.log = self._log
        if self._prompt is not None or self._weighs_tokens:
            trainer.compute_loss = self._compute_loss
            trainer.get_batch_samples = self._get_batch_samples
        trainer.add_callback(self)
        trainer.lethe_rehearsal = self

    def _train(self, resume_from_checkpoint: Any = None, *rest: Any, **named: Any):
        """Trains, and remembers the checkpoint's folder, which callbacks are not given."""
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.trainer.args.output_dir)
        self._resumed_from = Path(checkpoint) if checkpoint else None
        return self._original["train"](resume_from_checkpoint, *rest, **named)

    def on_train_begin(self, args, state, control, **_kwargs):
        """Compares a checkpoint that the training resumes from with this rehearsal.

        A checkpoint that was saved without a rehearsal is accepted with a warning.

        Raises
        ------
        LetheError
            If the checkpoint was made with other settings, other replay examples or another base
            model.
        """
        self._first_step = True
        self._sums = {}
        self._steps = 0
        if not state.global_step or self._resumed_from is None:
            return
        path = self._resumed_from / SETTINGS_FILE
        if not path.is_file():
            logger.warning(
                "Rehearsal: %s has no %s, so it was saved without a Rehearsal and its settings "
                "cannot be compared; make sure that you attached to the untouched base model, not "
                "to the checkpoint's weights",
                self._resumed_from,
                SETTINGS_FILE,
            )
            return
        # Files of earlier versions do not have these keys.
        earlier = {"max_tokens": self.settings["max_tokens"], "dose": "step"}
        saved = {**earlier, **read_json(path)}
        for name, value in self.settings.items():
            if saved.get(name) != value:
                remedy = "attach with the value of the first start"
                if name == "base":
                    remedy = (
                        "attach to the untouched base model, not to the checkpoint's weights; the "
                        "trainer loads these itself"
                    )
                elif name == "replay":
                    remedy = "give the file of the first start"
                raise LetheError(
                    f"Rehearsal: {path} has {name} {saved.get(name)!r}, but this rehearsal has "
                    f"{value!r}, so the training would not go on as it began; {remedy}"
                )

    def on_save(self, args, state, control, **_kwargs):
        """Writes the settings into the checkpoint, for the comparison when it resumes."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / SETTINGS_FILE, self.settings)

    def _training_step(self, model: Any, inputs: Mapping[str, Any], *rest: Any, **named: Any):
        """Adds the replay term's gradients before the step's last micro-batch.

        With several processes the gradients are averaged in the backward pass of that micro-batch,
        with those that are there by then.
        """
        if self.trainer.accelerator.sync_gradients:
            self._replay(model)
            self._steps += 1
        self._training = True
        self._prompt_loss = None
        try:
            loss = self._original["training_step"](model, inputs, *rest, **named)
        finally:
            self._training = False
        self._micro_batch += 1
        self._first_step = False
        if self._prompt_loss is not None:
            loss = loss - self._prompt_loss
        # The trainer logs the loss of the new examples, whatever its share of the step is.
        return loss / self._share_of_new if self._share_of_new else loss

    def _replay(self, model: Any) -> None:
        if self.replay is None or self.weight == 0:
            return
        accelerator = self.trainer.accelerator
        unwrapped = accelerator.unwrap_model(model)
        # As the trainer does before a step; an evaluation may have come before.
        model.train()
        step = Step(new=[], replayed=self.replay.of_step(self.trainer.state.global_step))
        for part in self._parts(step):
            loss = self._terms.loss(unwrapped, part, accelerator.device)
            if part.divergence is not None:
                # By tokens, and without new ones, the objective is the mean over the replayed.
                mean = loss if self.dose == "token" else loss / self.weight
                self._add("replay/kl", mean.detach())
            if self.dose == "token":
                loss = loss * (1 - self._share_of_new)
            self._add("replay/loss", loss.detach())
            # Processes' gradients are averaged, and the trainer's own division is undone.
            factor = accelerator.num_processes * accelerator.gradient_accumulation_steps
            accelerator.backward(loss * factor)

    def _parts(self, step: Step) -> list[Part]:
        """The passes that this process takes."""
        processes = self.trainer.accelerator.num_processes
        share = -(-len(step.replayed) // processes)
        size = max(1, min(share, self.trainer.args.per_device_train_batch_size))
        _, replayed = self._terms.parts(step, size)
        return replayed[self.trainer.accelerator.process_index :: processes]

    @property
    def _weighs_tokens(self) -> bool:
        """True if the new tokens' share of a step's loss depends on their number."""
        return self.dose == "token" and self.replay is not None and self.weight > 0

    def _get_batch_samples(self, *arguments: Any, **named: Any):
        """Counts a step's prompt tokens and tokens with loss, before its first micro-batch."""
        batches, items = self._original["get_batch_samples"](*arguments, **named)
        if self._prompt is not None:
            self._prompts_of_step = self._over_processes(
                sum(int(prompt_mask(batch).sum()) for batch in batches)
            )
            if batches and self._first_step and not self._prompts_of_step:
                self._refuse_without_prompts(batches)
        if batches and self._weighs_tokens:
            new = self._tokens_with_loss(batches)
            step = self.replay.of_step(self.trainer.state.global_step)
            replayed = sum(example.scored for example in step)
            self._share_of_new = new / (new + self.weight * replayed)
        self._micro_batch = 0
        return batches, items

    def _tokens_with_loss(self, batches: Sequence[Mapping[str, Any]]) -> int:
        """Number of a step's new tokens that carry loss, over all processes."""
        return self._over_processes(sum(count_labels(batch) for batch in batches))

    def _refuse_without_prompts(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Raises LetheError with the reason why the first step has no prompts."""
        if not self._tokens_with_loss(batches):
            raise LetheError(
                "Rehearsal: prompt_kl needs prompts with answers, but no token of the first step "
                f"carries loss (all labels are {NO_LOSS}); check that the examples have answers "
                "within the trainer's max_length, and that the chat template marks them"
            )
        raise LetheError(
            "Rehearsal: prompt_kl needs prompts, but all tokens of the first step carry loss; "
            "train on the answers only (trl: completion_only_loss or assistant_only_loss), or "
            "give a replay file instead of prompt_kl"
        )

    def _over_processes(self, count: int) -> int:
        """The sum of the processes' counts."""
        accelerator = self.trainer.accelerator
        counts = accelerator.gather(torch.tensor([count], device=accelerator.device))
        return int(counts.sum())

    def _compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **named: Any,
    ):
        """The trainer's own loss; while it trains, by its share and with the KL at the prompts."""
        own_loss = partial(
            self._original["compute_loss"],
            model,
            inputs,
            return_outputs,
            num_items_in_batch=num_items_in_batch,
            **named,
        )
        if not self._training:
            return own_loss()
        # Some trainers take the labels out of the batch.
        batch = dict(inputs)
        unwrapped = self.trainer.accelerator.unwrap_model(model)
        at_prompts = bool(self._prompts_of_step)
        with caught_states(unwrapped) if at_prompts else nullcontext([]) as caught:
            result = own_loss()
        loss = result[0] if return_outputs else result
        loss = loss * self._share_of_new
        if at_prompts:
            states = caught[0] if len(caught) == 1 else None
            loss = self._with_prompts(loss, unwrapped, batch, states, num_items_in_batch)
        return (loss, result[1]) if return_outputs else loss

    def _with_prompts(
        self,
        loss: torch.Tensor,
        model: Any,
        batch: Mapping[str, Any],
        states: torch.Tensor | None,
        items: Any,
    ) -> torch.Tensor:
        """A micro-batch's loss with the KL at its prompts.

        `states` are those of the model's last layer, if they are known, and `items` is what the
        trainer divides its loss by.
        """
        positions, weights = self._positions(batch)
        if not positions.any():
            return loss
        with models.autocast_for(model, self._precision):
            divergence = self._prompt.loss(
                model, batch, states, positions, weights / self._prompts_of_step
            )
        self._add("replay/prompt_kl", divergence.detach())
        term = self.prompt_kl * divergence * self.trainer.accelerator.num_processes
        self._prompt_loss = term.detach()
        if not self._scaled_for_accumulation(items):
            # The trainer divides the loss by the number of micro-batches.
            term = term * self.trainer.current_gradient_accumulation_steps
        return loss + term

    def _positions(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions (B, T - 1) of this micro-batch, and their weights (S,)."""
        mask = prompt_mask(batch)
        if self.prompt_kl_positions is None:
            return mask, torch.ones(int(mask.sum()), device=mask.device)
        trainer = self.trainer
        key = [
            self.seed,
            trainer.state.global_step,
            self._micro_batch,
            trainer.accelerator.process_index,
        ]
        state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
        return sample_positions(mask, documents(batch), self.prompt_kl_positions, generator)

    def _scaled_for_accumulation(self, items: Any) -> bool:
        """Whether the trainer's loss counts the whole step already (transformers' own rule)."""
        trainer = self.trainer
        if (scaled := getattr(trainer, "loss_is_scaled_for_ga", None)) is not None:
            return scaled
        counted = trainer.model_accepts_loss_kwargs and items is not None
        return counted or trainer.compute_loss_func is not None

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Adds the means since the last log to the record of the training loss."""
        if "loss" in logs and self._steps:
            accelerator = self.trainer.accelerator
            record = {}
            for name in self._names():
                total = self._sums.get(name, torch.zeros((), device=accelerator.device))
                # Each process has the part of the sum that its examples make up.
                total = accelerator.gather(total.reshape(1)).sum()
                record[name] = float(total) / self._steps
            logs = {**logs, **record}
            self.history.append({"step": self.trainer.state.global_step, **record})
            self._sums = {}
            self._steps = 0
        self._original["log"](logs, *rest, **named)

    def _names(self) -> list[str]:
        names = []
        if self.replay is not None and self.weight:
            names.append("replay/loss")
            if self.objective == "kl":
                names.append("replay/kl")
        if self._prompt is not None:
            names.append("replay/prompt_kl")
        return names


def _short_example(model: Any, term: ReplayTerm) -> Tokens:
    """A short example to try the model on."""
    if term.examples:
        return term.examples[0]
    last = model.get_input_embeddings().weight.shape[0] - 1
    return Tokens([min(number, last) for number in range(4)], 1)


def _make_teacher(model: Any, short_example: Tokens, dtype: str | None) -> LiveTeacher:
    """The base model: the model's own without its adapters, or a frozen copy of this type.

    trl replaces the forward method of a model by a function that holds the model itself. A copy
    would call this function and run the trained model, so it gets its own methods back.
    """
    copy_dtype = None if dtype is None else getattr(torch, dtype)
    teacher = frozen_copy(model, has_sliceable_head(model, short_example), copy_dtype)
    if teacher.model is not model:
        for module in teacher.model.modules():
            if not hasattr(module, "_hf_hook"):
                vars(module).pop("forward", None)
                vars(module).pop("_original_forward", None)
    return teacher


def _base_fingerprint(model: Any) -> str:
    """SHA-256 of some values of each tensor of the base model.

    Weights of adapters are left out, because the base model is the same without them.
    """
    adapters = hasattr(model, "disable_adapter")
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if adapters and parameter.requires_grad:
            continue
        values = parameter.detach().flatten()[:_FINGERPRINT_VALUES].float().cpu()
        digest.update(json.dumps([name, values.tolist()]).encode())
    return digest.hexdigest()
