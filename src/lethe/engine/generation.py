"""Exact match: the answers of a model by greedy generation, graded against the targets."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lethe.data.chat import stop_tokens
from lethe.engine.batch_runner import BatchRunner
from lethe.engine.batches import model_of

BLANK_LINE = "\n\n"
# Last tokens that are decoded to find a blank line: it may be spread over two of them.
TAIL = 4
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_words(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def normalise_squad(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces (SQuAD; protocol: paper)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def normalise_plain(text: str) -> str:
    """Single spaces, nothing else: case and punctuation count."""
    return " ".join(text.split())


# The first normaliser that leaves some of the target is used: "squad" leaves nothing of the choice
# "(A)", so that an empty answer would count as right.
NORMALISERS = {
    "squad": (normalise_squad, normalise_words, normalise_plain),
    "plain": (normalise_plain,),
}


@dataclass(frozen=True)
class Graded:
    """`exact_match` and `token_f1` (N,), from 0 to 1, NaN where there is no answer."""

    exact_match: np.ndarray
    token_f1: np.ndarray


def _normaliser_of(target: str, normaliser: str) -> Callable[[str], str]:
    """The first normaliser of this name that leaves some of the target."""
    normalisers = NORMALISERS[normaliser]
    return next((each for each in normalisers if each(target)), normalisers[-1])


def match_by_chance(
    answers: Sequence[str | None], targets: Sequence[str], groups: Sequence[str], normaliser: str
) -> np.ndarray:
    """Share (N,) of the answers to a group's other questions that would be right here.

    A model that knows the kind of answer, but not the question, is right that often. NaN where a
    group has no other answer.
    """
    # Group and normaliser -> how often each normalised answer occurs.
    counts: dict[tuple[str, Callable[[str], str]], Counter[str]] = {}
    sizes = Counter(
        group for group, answer in zip(groups, answers, strict=True) if answer is not None
    )
    for group in sizes:
        for normalise in NORMALISERS[normaliser]:
            counts[group, normalise] = Counter()
    for group, answer in zip(groups, answers, strict=True):
        if answer is not None:
            for normalise in NORMALISERS[normaliser]:
                counts[group, normalise][normalise(answer)] += 1
    shares = np.full(len(targets), np.nan, dtype=np.float32)
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        others = sizes[groups[row]] - (answer is not None)
        if others < 1:
            continue
        normalise = _normaliser_of(target, normaliser)
        matches = counts[groups[row], normalise][normalise(target)]
        own = answer is not None and normalise(answer) == normalise(target)
        shares[row] = (matches - own) / others
    return shares


def grade(answers: Sequence[str | None], targets: Sequence[str], normaliser: str) -> Graded:
    """Compares answers with their targets, both normalised."""
    exact = np.full(len(targets), np.nan, dtype=np.float32)
    f1 = exact.copy()
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        if answer is not None:
            normalise = _normaliser_of(target, normaliser)
            exact[row] = normalise(answer) == normalise(target)
            f1[row] = token_f1(normalise(answer), normalise(target))
    return Graded(exact, f1)


def token_f1(answer: str, target: str) -> float:
    """Harmonic mean of precision and recall of the words; repeated words count each time.

    Two empty texts agree.
    """
    answer_words = answer.split()
    target_words = target.split()
    if not answer_words or not target_words:
        return float(answer_words == target_words)
    common = sum((Counter(answer_words) & Counter(target_words)).values())
    return 2 * common / (len(answer_words) + len(target_words))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tokens_per_batch: int,
    title: str = "answering",
    *,
    partial: Sequence[str | None] | None = None,
    after_batch: Callable[[list[str | None]], None] | None = None,
) -> list[str]:
    """The model's greedy answers (protocol: paper, section 1.4).

    An answer ends with an end token, at the first blank line or after `max_new_tokens`. Prompts
    are batched by length and padded on the left. Batches depend on the prompts' lengths and
    `tokens_per_batch` only, so that without training the answers are the same. A batch that does
    not fit into memory is answered in halves, and so are later ones.

    Parameters
    ----------
    prompts
        Token ids of each prompt, at least one per prompt.
    tokens_per_batch
        Prompt and answer tokens per batch, padded.
    partial
        Answers of an interrupted run, None where there is no answer yet; only those are generated.
    after_batch
        Called with the answers so far, None where there is no answer yet, after every batch.

    Raises
    ------
    LetheError
        If a single prompt does not fit into memory.
    """
    answers = np.full(len(prompts), None, dtype=object)
    if partial is not None:
        answers[:] = partial
    runner = BatchRunner(
        _Answerer(model, tokenizer, prompts, max_new_tokens),
        results=answers,
        finished=np.array([answer is not None for answer in answers], dtype=bool),
        rows=np.arange(len(prompts)),
        tokens_per_batch=tokens_per_batch,
        title=title,
    )
    runner.run(None if after_batch is None else lambda results: after_batch(results.tolist()))
    return answers.tolist()


class _Answerer:
    """Greedy decoding of one batch at a time, whatever the model's own generation settings are."""

    def __init__(
        self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
    ):
        self.model = model_of(model)
        # Routes a batch of answers by its prompts, if the model does that.
        self.answering = getattr(model, "answering", None)
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.lengths = np.array(
            [len(prompt) + max_new_tokens for prompt in prompts], dtype=np.int64
        )
        self.device = self.model.device
        end = self.model.generation_config.eos_token_id
        ends = [*(end if isinstance(end, list) else [end]), *stop_tokens(tokenizer)]
        self.ends = sorted({end for end in ends if end is not None})
        self.pad = self.ends[0] if self.ends else 0
        self.config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.ends or None,
            pad_token_id=self.pad,
        )

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Answers to the prompts at these rows."""
        prompts = [self.prompts[row] for row in rows]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for number, prompt in enumerate(prompts):
            ids[number, width - len(prompt) :] = torch.tensor(prompt)
            mask[number, width - len(prompt) :] = 1
        spans = [(width - len(prompt), width) for prompt in prompts]
        with nullcontext() if self.answering is None else self.answering(spans):
            lines = self._continue(ids, mask)
        return np.array([self._text(line) for line in lines], dtype=object)

    def too_large(self, row: int) -> str:
        """The error of a prompt that does not fit into memory by itself."""
        return (
            f"one prompt of {len(self.prompts[row])} tokens does not fit into memory; lower "
            "scoring.max_tokens or scoring.max_new_tokens, or use a smaller dtype"
        )

    def _continue(self, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        """The tokens that the model writes after each prompt."""
        model = self.model
        was_training = model.training
        # generate() fills gaps of a config from the model's own: sampling, penalties.
        own_config = model.generation_config
        model.generation_config = self.config
        model.eval()
        stop = StoppingCriteriaList([_BlankLine(self.tokenizer, ids.shape[1])])
        try:
            sequences = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=self.config,
                stopping_criteria=stop,
            )
        finally:
            model.generation_config = own_config
            model.train(was_training)
        return sequences[:, ids.shape[1] :].tolist()

    def _text(self, ids: list[int]) -> str:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text.split(BLANK_LINE)[0].strip()


class _BlankLine(StoppingCriteria):
    """Ends each answer of a batch once it contains a blank line."""

    def __init__(self, tokenizer: Any, prompt_width: int):
        self.tokenizer = tokenizer
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:
        start = max(self.prompt_width, input_ids.shape[1] - TAIL)
        ended = [BLANK_LINE in self.tokenizer.decode(ids) for ids in input_ids[:, start:].tolist()]
        return torch.tensor(ended, device=input_ids.device)
