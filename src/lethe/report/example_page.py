"""What the page shows about one upstream example: its tokens, and what the task trains on.

The page's script example_page.js draws it. Token losses of the same example share their texts and
their losses before, because both come from the base model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lethe.data.examples import Example
from lethe.matrix.token_files import TokenLosses

# Token losses after a fine-tune that the page holds; with more, each task gets fewer examples.
MOST_TOKENS = 400_000
# Training examples per task, and their longest text.
TRAINING_EXAMPLES = 2
MOST_CHARACTERS = 600
# Losses are whole numbers of this many per nat.
STEPS_PER_NAT = 100

# Model -> task -> token losses of the most forgotten examples, the most forgotten first.
StoredTokens = Mapping[str, Mapping[str, Sequence[TokenLosses]]]


def content_text(content: Example) -> str:
    """An example as text to read: plain text, or a prompt and its answer."""
    if content.text is not None:
        return content.text
    return f"{content.prompt} → {content.answer}"


def training_texts(examples: Sequence[Example]) -> list[str]:
    """The first training examples of a task, as text of bounded length."""
    return [
        cut_text(content_text(example), MOST_CHARACTERS) for example in examples[:TRAINING_EXAMPLES]
    ]


def cut_text(text: str, most: int) -> str:
    """The first `most` characters of a text, with an ellipsis if it is longer."""
    return text if len(text) <= most else f"{text[:most]} …"


def token_content(stored: StoredTokens) -> dict[str, Any]:
    """The token losses as JSON values.

    Returns
    -------
    `per_nat`, `examples` (the most per task) and `models`: model -> `texts` (example -> texts of
    its tokens), `before` (example -> losses) and `after` (task -> example -> losses). Losses are
    whole numbers, `per_nat` of them per nat, and None for a token that carries no loss.
    """
    count = examples_per_task(stored)
    models: dict[str, Any] = {}
    for model, by_task in stored.items():
        content: dict[str, Any] = {"texts": {}, "before": {}, "after": {}}
        for task, examples in by_task.items():
            after = {}
            for example in examples[:count]:
                content["texts"].setdefault(example.example_id, example.tokens)
                content["before"].setdefault(example.example_id, _steps(example.before))
                after[example.example_id] = _steps(example.after)
            content["after"][task] = after
        models[model] = content
    return {"per_nat": STEPS_PER_NAT, "examples": count, "models": models}


def ids_with_tokens(stored: StoredTokens) -> set[str]:
    """Ids of the examples whose token losses the page has for at least one task and model."""
    count = examples_per_task(stored)
    ids = set()
    for by_task in stored.values():
        for examples in by_task.values():
            ids |= {example.example_id for example in examples[:count]}
    return ids


def examples_per_task(stored: StoredTokens, most_tokens: int = MOST_TOKENS) -> int:
    """The largest number of examples per task whose tokens fit into the page."""
    # Tokens of the first, second, ... examples of all tasks and models.
    sizes: dict[int, int] = {}
    for by_task in stored.values():
        for examples in by_task.values():
            for position, example in enumerate(examples):
                sizes[position] = sizes.get(position, 0) + len(example.tokens)
    count = 0
    total = 0
    for position in sorted(sizes):
        total += sizes[position]
        if total > most_tokens:
            break
        count = position + 1
    return count


def _steps(losses: np.ndarray) -> list[int | None]:
    steps: list[int | None] = []
    for loss in losses.astype(np.float64):
        steps.append(round(loss * STEPS_PER_NAT) if np.isfinite(loss) else None)
    return steps
