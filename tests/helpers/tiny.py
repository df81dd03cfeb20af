"""Tiny models, tokenizers and examples; nothing here is fetched."""

import random

from lethe.config.model_settings import Pretraining
from lethe.data.examples import Example, UpstreamExample
from lethe.data.tokens import Tokens
from lethe.engine import models

ARCHITECTURES = ("olmo", "olmo2", "gpt_neox", "mpt", "llama")
VOCABULARY = 300
CONTEXT = 48
TEXT = (
    "The river of forgetting runs slow and cold. Whoever drinks from it remembers nothing of what "
    "was learned before, and yet the banks are full of people with cups. A miller asks the "
    "ferryman: how many sacks fit in the boat? Seven, says he, and one more if you stay ashore."
)


def tokenizer():
    """A tokenizer trained on TEXT."""
    return models.train_tokenizer([TEXT] * 3, VOCABULARY)


def sizes(**changes) -> Pretraining:
    """Sizes of a model of some thousand parameters."""
    small = {"vocabulary": VOCABULARY, "hidden": 16, "layers": 2, "heads": 2, "context": CONTEXT}
    return Pretraining(**small | {"steps": 12, "batch": 4, "warmup_steps": 2} | changes)


def model(architecture: str, seed: int = 0, scale: float = 6.0):
    """A model with random weights, scaled so that its predictions are far from uniform."""
    made = models.from_scratch(architecture, sizes(seed=seed), VOCABULARY, 0)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(scale)
    return made.eval()


class Folders:
    """Cards of saved models by architecture, made when first asked for."""

    def __init__(self, root, tokenizer):
        self._root, self._tokenizer, self._cards = root, tokenizer, {}

    def __getitem__(self, architecture: str) -> dict:
        if architecture not in self._cards:
            folder = self._root / architecture
            model(architecture).save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
            self._cards[architecture] = models.card(str(folder))
        return self._cards[architecture]


def tokens(*shapes: tuple[int, int], seed: int = 0) -> list[Tokens]:
    """Random examples of the given (length, start)."""
    rng = random.Random(seed)
    return [
        Tokens([rng.randrange(1, VOCABULARY) for _ in range(length)], start)
        for length, start in shapes
    ]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different short sentences of the words in TEXT."""
    rng = random.Random(f"sentences {seed}")
    words = TEXT.split()
    return [f"{number} " + " ".join(rng.choices(words, k=8)) for number in range(count)]


def pairs(count: int, seed: int = 0) -> list[Example]:
    """Prompt-answer pairs with a rule to learn: the answer repeats the prompt's first word."""
    return [
        Example(f"{text.split()[0]}: say {text.split()[1]}", text.split()[1])
        for text in sentences(count, seed)
    ]


def upstream(count: int, seed: int = 0) -> list[UpstreamExample]:
    """Plain upstream texts of two domains; every fourth is held out."""
    return [
        UpstreamExample(
            f"{'ab'[i % 2]}-{i:05d}",
            "ab"[i % 2],
            "heldout" if i % 4 == 3 else "replayable",
            Example(text=text),
        )
        for i, text in enumerate(sentences(count, seed))
    ]
