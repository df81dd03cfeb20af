"""Right answers before and after a fine-tune: what a binary Z is made of."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.config.model_settings import Scoring
from lethe.data.examples import Example
from lethe.data.tokens import prompt_ids
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.generation import generate, grade
from lethe.errors import LetheError
from lethe.matrix.rows import Answers


def keep(checkpoint: Checkpoint, part: str, answers: Sequence[str | None]) -> None:
    """Saves the answers to what was asked, None where there is none yet."""
    content = torch.tensor(list(json.dumps(answers).encode()), dtype=torch.uint8)
    checkpoint.save(part, {"json": content}, {})


@dataclass(frozen=True)
class Questions:
    """Examples (N,) as prompts, already tokens, with the answers that are wanted.

    Prompts longer than `scoring.max_tokens` lose their beginning; `truncated` counts them.
    """

    prompts: list[list[int]]
    wanted: list[str]
    truncated: int
    scoring: Scoring

    @classmethod
    def of(cls, tokenizer: Any, examples: Sequence[Example], scoring: Scoring) -> "Questions":
        """Raises LetheError if an example is plain text: nothing in it is an answer."""
        for number, example in enumerate(examples):
            if example.answer is None:
                raise LetheError(
                    f"scoring.exact_match: example {number} is plain text "
                    f"({(example.text or '')[:60]!r}); give pairs of prompt and answer, or remove "
                    "scoring.exact_match"
                )
        ids = [prompt_ids(tokenizer, example.prompt or "") for example in examples]
        cut = sum(len(prompt) > scoring.max_tokens for prompt in ids)
        prompts = [prompt[-scoring.max_tokens :] for prompt in ids]
        return cls(prompts, [str(example.answer) for example in examples], cut, scoring)

    def ask(
        self,
        model: Any,
        tokenizer: Any,
        asked: np.ndarray | None = None,
        title: str = "answering",
        checkpoint: Checkpoint | None = None,
        part: str = "answers",
        save_weights: Callable[[], None] = lambda: None,
    ) -> list[str | None]:
        """The model's answers (N,), None where `asked` (N,) is false; without it all are asked.

        What an interrupted run left in the checkpoint's `part` is not asked for again.
        """
        checkpoint = checkpoint or Checkpoint(None)
        rows = np.arange(len(self.prompts)) if asked is None else np.flatnonzero(asked)
        found = checkpoint.load(part)
        known = None if found is None else json.loads(bytes(found[0]["json"].tolist()))

        def after_batch(answers: list[str | None]) -> None:
            if checkpoint.due():
                save_weights()
                keep(checkpoint, part, answers)
                done = sum(answer is not None for answer in answers)
                checkpoint.leave_if_asked(f"{title}, {done} of {len(answers)} answers")

        said = generate(
            model,
            tokenizer,
            [self.prompts[row] for row in rows],
            self.scoring.exact_match.max_new_tokens,
            self.scoring.budget,
            title,
            known=known,
            after_batch=after_batch,
        )
        answers: list[str | None] = [None] * len(self.prompts)
        for row, answer in zip(rows, said, strict=True):
            answers[row] = answer
        return answers

    def right(self, answers: Sequence[str | None]) -> np.ndarray:
        """True (N,) where an answer is there and matches."""
        return self._grade(answers).exact_match == 1

    def _grade(self, answers: Sequence[str | None]):
        return grade(answers, self.wanted, self.scoring.exact_match.normaliser)

    def base(
        self,
        model: Any,
        tokenizer: Any,
        title: str,
        checkpoint: Checkpoint,
        save: Callable[[], None] = lambda: None,
    ) -> Answers:
        """What the untouched model answers, before being after.

        `save` keeps what was measured before, whenever answers are saved.

        Right is what is right again when only the right ones are asked: a fine-tuned model is
        asked for those alone, in the same batches, so that without training nothing is lost, and
        half the work or more is saved in every row.
        """
        asked = np.ones(len(self.prompts), dtype=bool)
        answers: list[str | None] = [None] * len(self.prompts)
        for number in range(len(self.prompts) + 1):
            part = f"answers{number}"
            said = self.ask(model, tokenizer, asked, title, checkpoint, part, save_weights=save)
            answers = [old if new is None else new for old, new in zip(answers, said, strict=True)]
            if (right := self.right(said)).tolist() == asked.tolist():
                break
            asked = right
        graded = self._grade(answers)
        exact, f1 = graded.exact_match, graded.token_f1
        return Answers(exact, exact, f1, f1, answers)

    def after(self, base: Answers, answers: list[str | None]) -> Answers:
        """The base model's answers beside those of a fine-tuned one."""
        graded = self._grade(answers)
        before = (base.exact_match_before, base.token_f1_before)
        return Answers(before[0], graded.exact_match, before[1], graded.token_f1, answers)
