"""The associations of one model, from examples to matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, read_upstream
from lethe.data.tokens import Tokens, tokenise
from lethe.engine import models
from lethe.errors import LetheError
from lethe.files import read_json
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity import directions, gradients, representation
from lethe.similarity.association_files import read_tasks
from lethe.similarity.embeddings import Embeddings, gather
from lethe.similarity.projection import CountSketch


@dataclass(frozen=True)
class ModelExamples:
    """A base model with the examples of tasks and upstream as it reads them.

    Tasks are tokenised as they are trained on (recipe), upstream examples as they are scored.
    """

    model: Any
    tokenizer: Any
    tasks: Mapping[str, Sequence[Example]]
    upstream: Sequence[UpstreamExample]
    recipe: Recipe
    scoring: Scoring

    def representations(self) -> Embeddings:
        """Mean last hidden states; a task is the mean over its examples."""
        tasks = {t: self._represent(self._task_tokens(e)) for t, e in self.tasks.items()}
        return gather(tasks, self._represent(self._upstream_tokens()), self.upstream)

    def task_gradients(self, sketch: CountSketch) -> np.ndarray:
        """Sketched mean gradients (M, dims) of the tasks' losses.

        Raises
        ------
        LetheError
            Naming a task none of whose examples carries loss.
        """
        found = []
        for task, examples in self.tasks.items():
            tokens = self._task_tokens(examples)
            try:
                mean = gradients.task_gradient(self.model, tokens, self.scoring.budget)
            except LetheError as error:
                raise LetheError(f"task {task!r}: {error}")
            found.append(sketch(mean).cpu().numpy())
        return np.stack(found)

    def inner_products(
        self, kinds: Mapping[str, np.ndarray], sketch: CountSketch
    ) -> dict[str, Matrix]:
        """Name -> inner products (M, N) of its directions (M, dims) with upstream gradients.

        Upstream gradients are taken once for all names.
        """
        stacked = np.concatenate(list(kinds.values()))
        tokens = self._upstream_tokens()
        products = gradients.inner_products(self.model, tokens, stacked, sketch)
        parts = np.split(products, len(kinds))
        ids = [example.example_id for example in self.upstream]
        return {
            name: Matrix(part, list(self.tasks), ids)
            for name, part in zip(kinds, parts, strict=True)
        }

    def _represent(self, tokens: Sequence[Tokens]) -> np.ndarray:
        return representation.represent(self.model, tokens, self.scoring.budget)

    def _task_tokens(self, examples: Sequence[Example]) -> list[Tokens]:
        recipe = self.recipe
        return tokenise(self.tokenizer, examples, recipe.max_tokens, recipe.truncation).examples

    def _upstream_tokens(self) -> list[Tokens]:
        scoring, examples = self.scoring, [example.example for example in self.upstream]
        return tokenise(
            self.tokenizer, examples, scoring.max_tokens, "right", scoring.include_eos
        ).examples


def read_model_examples(
    inputs: Mapping[str, Any], count: int, recipe: dict, scoring: dict, threads: int, gpu: int
) -> ModelExamples:
    """Reads inputs card, upstream and train (a file a task); loads the model."""
    models.use_machine(threads, gpu)
    settings = Scoring(**scoring)
    loaded = models.load(read_json(inputs["card"]), settings.weights, gpu)
    upstream, tasks = read_upstream(Path(inputs["upstream"])), read_tasks(inputs["train"], count)
    return ModelExamples(*loaded, tasks, upstream, Recipe(**recipe), settings)


def first_order(
    examples: ModelExamples, names: Sequence[str], moved: Mapping[str, Path], sketch: CountSketch
) -> dict[str, Matrix]:
    """The associations among `names` that are inner products with upstream gradients.

    Parameters
    ----------
    moved
        task -> file of its direction, for `weight_difference`.
    """
    kinds = {}
    if "gradient" in names:
        kinds["gradient"] = examples.task_gradients(sketch)
    if "weight_difference" in names:
        read = [directions.read(moved[task], sketch) for task in examples.tasks]
        kinds["weight_difference"] = np.stack(read)
    return examples.inner_products(kinds, sketch) if kinds else {}
