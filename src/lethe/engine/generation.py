"""Exact match: what a model answers by greedy generation, beside what it should have answered."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from lethe.data.chat import stop_tokens
from lethe.engine import distributed
from lethe.engine.batches import model_of
from lethe.engine.progress import progress
from lethe.engine.scoring import cut_by_length, out_of_memory
from lethe.errors import LetheError

BLANK_LINE = "\n\n"
# Tokens that are read again for a blank line: it may be spread over two of them.
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


# The first that leaves something of what is wanted: of the choice "(A)" squad leaves nothing, and
# saying nothing would be right.
NORMALISERS = {
    "squad": (normalise_squad, normalise_words, normalise_plain),
    "plain": (normalise_plain,),
}


@dataclass(frozen=True)
class Graded:
    """`exact_match` and `token_f1` (N,), in 0..1, NaN where there is no answer."""

    exact_match: np.ndarray
    token_f1: np.ndarray


def grade(answers: Sequence[str | None], wanted: Sequence[str], normaliser: str) -> Graded:
    """Compares answers with what was wanted, both normalised."""
    kinds = NORMALISERS[normaliser]
    exact = np.full(len(wanted), np.nan, dtype=np.float32)
    f1 = exact.copy()
    for row, (answer, target) in enumerate(zip(answers, wanted, strict=True)):
        if answer is not None:
            normal = next((kind for kind in kinds if kind(target)), kinds[-1])
            exact[row] = normal(answer) == normal(target)
            f1[row] = token_f1(normal(answer), normal(target))
    return Graded(exact, f1)


def token_f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of the words, repeated ones counted.

    Two empty texts agree.
    """
    said, needed = answer.split(), wanted.split()
    if not said or not needed:
        return float(said == needed)
    common = sum((Counter(said) & Counter(needed)).values())
    return 2 * common / (len(said) + len(needed))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tokens_per_batch: int,
    title: str = "answering",
    *,
    known: Sequence[str | None] | None = None,
    after_batch: Callable[[list[str | None]], None] | None = None,
) -> list[str]:
    """The model's greedy answers (protocol: paper, section 1.4).

    An answer ends with an end token, at the first blank line or after `max_new_tokens`. Prompts
    are batched by length and padded on the left; batches depend on the prompts' lengths and
    `tokens_per_batch` only, so that without training the answers are the same. A batch that does
    not fit into memory is answered in halves.

    Parameters
    ----------
    prompts
        Token ids of each prompt, one at least.
    tokens_per_batch
        Prompt and answer tokens of a batch, padded.
    known
        Answers that an interrupted run left; those are not asked for again.
    after_batch
        Called with the answers so far, None where there is none yet, after every batch.

    Raises
    ------
    LetheError
        If a single prompt does not fit into memory.
    """
    answers = list(known) if known is not None else [None] * len(prompts)
    speaker = _Speaker(model, tokenizer, max_new_tokens)
    lengths = np.array([len(prompt) + max_new_tokens for prompt in prompts], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    waiting = list(cut_by_length(order, lengths, tokens_per_batch))[::-1]
    bar = progress(range(len(waiting)), title, "batch")
    while waiting:
        turn, mine = distributed.in_turns(waiting)
        said = [] if mine is None else [answers[row] for row in mine]
        if None in said:
            said = speaker.answers([prompts[row] for row in mine])
        for rows, given in zip(turn, distributed.gathered(said), strict=False):
            if given is None:
                waiting += _halves(rows, title, len(prompts[rows[0]]))
                continue
            for row, answer in zip(rows, given, strict=True):
                answers[row] = answer
            bar.update()
        if after_batch is not None:
            after_batch(answers)
    bar.close()
    return answers


def _halves(rows: np.ndarray, title: str, tokens: int) -> list[np.ndarray]:
    if len(rows) == 1:
        raise LetheError(
            f"{title}: one prompt of {tokens} tokens does not fit into memory; lower "
            "scoring.max_tokens or scoring.max_new_tokens, or use a smaller dtype"
        )
    half = -(-len(rows) // 2)
    return [rows[half:], rows[:half]]


class _Speaker:
    """Greedy decoding of one batch, whatever the model's own generation settings are."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int):
        self.model, self.tokenizer = model_of(model), tokenizer
        own = self.model.generation_config.eos_token_id
        ends = [*(own if isinstance(own, list) else [own]), *stop_tokens(tokenizer)]
        self.ends = sorted({end for end in ends if end is not None})
        self.pad = self.ends[0] if self.ends else 0
        self.config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.ends or None,
            pad_token_id=self.pad,
        )

    def answers(self, prompts: list[list[int]]) -> list[str] | None:
        """Answers of a batch; None if it did not fit into memory."""
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        try:
            return [self._text(line) for line in self._generated(ids, mask)]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            return None

    def _generated(self, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        model, was_training = self.model, self.model.training
        # generate() fills what a config leaves open from the model's own: sampling, penalties.
        theirs, model.generation_config = model.generation_config, self.config
        model.eval()
        stop = StoppingCriteriaList([_BlankLine(self.tokenizer, ids.shape[1])])
        try:
            said = model.generate(
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=self.config,
                stopping_criteria=stop,
            )
        finally:
            model.generation_config = theirs
            model.train(was_training)
        return said[:, ids.shape[1] :].tolist()

    def _text(self, ids: list[int]) -> str:
        ended = [place for place, token in enumerate(ids) if token in self.ends]
        text = self.tokenizer.decode(ids[: ended[0]] if ended else ids, skip_special_tokens=True)
        return text.split(BLANK_LINE)[0].strip()


class _BlankLine(StoppingCriteria):
    """Ends each answer of a batch where it holds a blank line."""

    def __init__(self, tokenizer: Any, prompt: int):
        self.tokenizer, self.prompt = tokenizer, prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_kwargs: Any) -> torch.Tensor:
        tails = input_ids[:, max(self.prompt, input_ids.shape[1] - TAIL) :].tolist()
        ended = [BLANK_LINE in self.tokenizer.decode(tail) for tail in tails]
        return torch.tensor(ended, device=input_ids.device)
