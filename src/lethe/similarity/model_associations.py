"""The associations that one model makes: from examples to matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, ids_of, read_upstream
from lethe.data.tokens import Tokens, tokenise
from lethe.engine import models
from lethe.errors import LetheError
from lethe.files import read_json
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity import directions, gradients, representation
from lethe.similarity.association_files import read_task_examples
from lethe.similarity.embeddings import Embeddings, average_by_task
from lethe.similarity.projection import CountSketch


@dataclass(frozen=True)
class ModelExamples:
    """A base model with the examples of tasks and upstream.

    Tasks are tokenised as in training (recipe), upstream examples as in scoring.
    """

    model: Any
    tokenizer: Any
    tasks: Mapping[str, Sequence[Example]]
    upstream: Sequence[UpstreamExample]
    recipe: Recipe
    scoring: Scoring

    def representations(self) -> Embeddings:
        """Computes mean last hidden states; a task is the mean over its examples."""
        vectors = {}
        for task, examples in self.tasks.items():
            vectors[task] = self._represent(self._task_tokens(examples))
        return average_by_task(vectors, self._represent(self._upstream_tokens()), self.upstream)

    def task_gradients(self, sketch: CountSketch) -> np.ndarray:
        """Computes sketched mean gradients (M, dims) of the tasks' losses.

        Raises
        ------
        LetheError
            If no example of a task carries loss. The message names the task.
        """
        sketches = []
        for task, examples in self.tasks.items():
            tokens = self._task_tokens(examples)
            try:
                gradient = gradients.task_gradient(self.model, tokens, self.scoring.budget)
            except LetheError as error:
                raise LetheError(f"task {task!r}: {error}")
            sketches.append(sketch(gradient).cpu().numpy())
        return np.stack(sketches)

    def inner_products(
        self, kinds: Mapping[str, np.ndarray], sketch: CountSketch
    ) -> dict[str, Matrix]:
        """Computes inner products (M, N) of directions (M, dims) with upstream gradients.

        `kinds` holds the directions by association name. Upstream gradients are computed once for
        all names.
        """
        stacked = np.concatenate(list(kinds.values()))
        tokens = self._upstream_tokens()
        products = gradients.inner_products(self.model, tokens, directions=stacked, sketch=sketch)
        example_ids = ids_of(self.upstream)
        matrices = {}
        for name, part in zip(kinds, np.split(products, len(kinds)), strict=True):
            matrices[name] = Matrix(part, list(self.tasks), example_ids)
        return matrices

    def _represent(self, tokens: Sequence[Tokens]) -> np.ndarray:
        return representation.represent(self.model, tokens, self.scoring.budget)

    def _task_tokens(self, examples: Sequence[Example]) -> list[Tokens]:
        return tokenise(
            self.tokenizer,
            examples,
            max_tokens=self.recipe.max_tokens,
            truncation=self.recipe.truncation,
        ).examples

    def _upstream_tokens(self) -> list[Tokens]:
        return tokenise(
            self.tokenizer,
            [example.example for example in self.upstream],
            max_tokens=self.scoring.max_tokens,
            truncation="right",
            include_eos=self.scoring.include_eos,
        ).examples


def read_model_examples(
    card: Path,
    upstream: Path,
    train_files: Mapping[str, Path | str],
    *,
    count: int,
    recipe: Recipe,
    scoring: Scoring,
    threads: int,
    gpus: int,
) -> ModelExamples:
    """Reads the examples of tasks and of upstream, and loads the model of the card."""
    models.use_machine(threads, gpus)
    model, tokenizer = models.load(read_json(card), scoring.weights, gpus)
    return ModelExamples(
        model=model,
        tokenizer=tokenizer,
        tasks=read_task_examples(train_files, count),
        upstream=read_upstream(upstream),
        recipe=recipe,
        scoring=scoring,
    )


def first_order(
    examples: ModelExamples,
    names: Sequence[str],
    *,
    direction_files: Mapping[str, Path],
    sketch: CountSketch,
) -> dict[str, Matrix]:
    """Computes the associations among `names` that are inner products with upstream gradients.

    Parameters
    ----------
    direction_files
        File of the direction per task, for `weight_difference`.
    """
    kinds = {}
    if "gradient" in names:
        kinds["gradient"] = examples.task_gradients(sketch)
    if "weight_difference" in names:
        rows = [directions.read_direction(direction_files[task], sketch) for task in examples.tasks]
        kinds["weight_difference"] = np.stack(rows)
    return examples.inner_products(kinds, sketch) if kinds else {}
