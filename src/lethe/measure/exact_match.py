"""Right answers before and after a fine-tune, from which a binary Z is made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from lethe.config.model_settings import Scoring
from lethe.data.examples import Example
from lethe.data.tokens import question_ids
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.generation import Graded, grade, match_by_chance
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.matrix.rows import Answers


def answer_tensors(answers: Sequence[str | None]) -> dict[str, torch.Tensor]:
    """Answers as a checkpoint stores them, None where there is no answer yet."""
    return {"json": torch.tensor(list(json.dumps(answers).encode()), dtype=torch.uint8)}


def load_answers(checkpoint: Checkpoint, part: str) -> list[str | None] | None:
    """The answers of an interrupted run; None if it left none."""
    if (saved := checkpoint.load(part)) is None:
        return None
    tensors, _ = saved
    return json.loads(bytes(tensors["json"].tolist()))


@dataclass(frozen=True)
class Questions:
    """Examples (N,) as prompts of token ids, with the target answers.

    Attributes
    ----------
    truncated
        Number of prompts longer than `scoring.max_tokens`; these lose their beginning.
    normaliser
        How answers are compared (`scoring.exact_match.normaliser`).
    """

    prompts: list[list[int]]
    targets: list[str]
    truncated: int
    normaliser: str

    @classmethod
    def of(cls, tokenizer: Any, examples: Sequence[Example], scoring: Scoring) -> Self:
        """Questions of examples that are pairs.

        Raises
        ------
        LetheError
            If an example is plain text, which contains no answer.
        """
        for number, example in enumerate(examples):
            if example.answer is None:
                raise LetheError(
                    f"scoring.exact_match: example {number} is plain text "
                    f"({(example.text or '')[:60]!r}); give pairs of prompt and answer, or remove "
                    "scoring.exact_match"
                )
        ids = [question_ids(tokenizer, example) for example in examples]
        return cls(
            prompts=[prompt[-scoring.max_tokens :] for prompt in ids],
            targets=[str(example.answer) for example in examples],
            truncated=sum(len(prompt) > scoring.max_tokens for prompt in ids),
            normaliser=scoring.exact_match.normaliser,
        )

    def ask(
        self,
        reader: Reader,
        selected: np.ndarray | None = None,
        title: str = "answering",
        *,
        checkpoint: Checkpoint | None = None,
        part: str = "answers",
    ) -> list[str | None]:
        """The model's answers (N,), None where no answer was requested.

        Parameters
        ----------
        selected
            Boolean (N,), true where an answer is requested; None: everywhere.
        checkpoint
            Answers that an interrupted run left in its `part` are not generated again. The part is
            finished when this returns.
        """
        checkpoint = checkpoint or Checkpoint()
        rows = np.arange(len(self.prompts)) if selected is None else np.flatnonzero(selected)

        def after_batch(answers: list[str | None]) -> None:
            if checkpoint.due():
                checkpoint.save(part, answer_tensors(answers))
                count = sum(answer is not None for answer in answers)
                checkpoint.leave_if_asked(f"{title}, {count} of {len(answers)} answers")

        answers_of_rows = reader.answers(
            [self.prompts[row] for row in rows],
            title,
            partial=load_answers(checkpoint, part),
            after_batch=after_batch,
        )
        checkpoint.remember(part, answer_tensors(answers_of_rows))
        answers: list[str | None] = [None] * len(self.prompts)
        for row, answer in zip(rows, answers_of_rows, strict=True):
            answers[row] = answer
        return answers

    def right(self, answers: Sequence[str | None]) -> np.ndarray:
        """True (N,) where there is an answer and it matches its target."""
        return self._grade(answers).exact_match == 1

    def right_by_chance(self, answers: Sequence[str | None], domains: Sequence[str]) -> np.ndarray:
        """Share (N,) of the answers to the domain's other questions that would be right here."""
        return match_by_chance(answers, self.targets, groups=domains, normaliser=self.normaliser)

    def _grade(self, answers: Sequence[str | None]) -> Graded:
        return grade(answers, self.targets, self.normaliser)

    def base(self, reader: Reader, title: str, checkpoint: Checkpoint) -> Answers:
        """The answers of the untouched model, as answers before and after.

        An answer is right if it is right again when only the right ones are requested. A fine-tuned
        model is asked for those only, in the same batches. So without training nothing is lost, and
        every row needs half the work or less.
        """
        selected = np.ones(len(self.prompts), dtype=bool)
        answers: list[str | None] = [None] * len(self.prompts)
        for round_number in range(len(self.prompts) + 1):
            latest = self.ask(
                reader,
                selected,
                title,
                checkpoint=checkpoint,
                part=f"answers{round_number}",
            )
            for row, answer in enumerate(latest):
                if answer is not None:
                    answers[row] = answer
            right = self.right(latest)
            if np.array_equal(right, selected):
                break
            selected = right
        graded = self._grade(answers)
        return Answers(
            exact_match_before=graded.exact_match,
            exact_match_after=graded.exact_match,
            token_f1_before=graded.token_f1,
            token_f1_after=graded.token_f1,
            text=answers,
        )

    def after(self, base: Answers, answers: list[str | None]) -> Answers:
        """The grades of the base model together with the answers of a fine-tuned one."""
        graded = self._grade(answers)
        return Answers(
            exact_match_before=base.exact_match_before,
            exact_match_after=graded.exact_match,
            token_f1_before=base.token_f1_before,
            token_f1_after=graded.token_f1,
            text=answers,
        )
