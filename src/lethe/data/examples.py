"""Examples and the parquet tables that hold them."""

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lethe.config.data_settings import even_sizes
from lethe.data.unpacked_size import refuse_large_parquet
from lethe.data.words import count_words, word_starts
from lethe.errors import LetheError
from lethe.files import atomic_write

logger = logging.getLogger(__name__)

# Examples that are read together, and so are in memory at the same time.
READ_AT_ONCE = 1024
# Splits of upstream examples.
SPLITS = ("replayable", "heldout")
# What is said of examples that `Example.storable` changed.
WITH_SURROGATES = "with half of a surrogate pair, which UTF-8 does not have (replaced by ?)"


@dataclass(frozen=True)
class Example:
    """A prompt with its answer, plain text, or a conversation.

    The parts that an example does not have are None.

    Attributes
    ----------
    chat
        A conversation that is more than one question and its answer, as JSON: an object with
        `messages` and, if there are any, `tools`. Tokens are made from it. Its `answer` is then
        the last assistant turn, and its `prompt` the turns before it, as text to read.
    """

    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    chat: str | None = None

    def conversation(self) -> tuple[list[dict[str, Any]], list[Any] | None]:
        """The turns and the tools of a conversation or of a pair."""
        if self.chat is None:
            question = {"role": "user", "content": self.prompt}
            return [question, {"role": "assistant", "content": self.answer}], None
        content = json.loads(self.chat)
        return content["messages"], content.get("tools")

    def as_dict(self) -> dict[str, str | None]:
        """The parts by name; a conversation is left out if there is none."""
        parts = {"prompt": self.prompt, "answer": self.answer, "text": self.text}
        return parts if self.chat is None else parts | {"chat": self.chat}

    def digest(self) -> str:
        """SHA-256 of the parts, in hex."""
        parts = ["\x00" if part is None else part for part in self._parts()]
        text = "\x1f".join(parts)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def storable(self) -> "Example":
        """The same example with `?` for halves of surrogate pairs.

        JSON may hold such halves, but UTF-8 may not.
        """
        if all(part is None or part.isascii() for part in self._parts()):
            return self
        return Example(
            prompt=_valid_utf8(self.prompt),
            answer=_valid_utf8(self.answer),
            text=_valid_utf8(self.text),
            chat=_valid_utf8(self.chat),
        )

    def is_empty(self) -> bool:
        """Whether there is nothing to compute a loss on."""
        if self.chat is not None:
            return False
        scored = self.text if self.answer is None else self.answer
        return not scored.strip()

    def _parts(self) -> list[str | None]:
        # Examples without a conversation keep the digests that they had before there were any.
        return list(self.as_dict().values())


def _valid_utf8(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class UpstreamExample:
    """An upstream example with its id, domain and split.

    The split is `replayable`, or `heldout` if the example must never be replayed.
    """

    example_id: str
    domain: str
    split: str
    example: Example


def distinct(
    examples: Iterable[Example],
    digests: set[str] | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Example]:
    """Yields the examples without empty ones and without repetitions of earlier ones.

    Parameters
    ----------
    digests
        Digests of examples that count as repeated. The digests of yielded examples are added.
    dropped
        Counts the examples that are left out, as `repeated` and `empty`, and those with `?` for
        halves of surrogate pairs (`Example.storable`), as `surrogates`.
    """
    digests = set() if digests is None else digests
    dropped = Counter() if dropped is None else dropped
    for read in examples:
        example = read.storable()
        digest = _digest_of_tokens(example)
        if example.is_empty():
            dropped["empty"] += 1
        elif digest in digests:
            dropped["repeated"] += 1
        else:
            digests.add(digest)
            if example != read:
                dropped["surrogates"] += 1
            yield example


def _log_surrogates(task: str, count: int) -> None:
    if count:
        logger.warning("task %s: %d examples %s", task, count, WITH_SURROGATES)


def _digest_of_tokens(example: Example) -> str:
    """A digest that is the same for examples whose tokens are: answers are read without spaces."""
    if example.chat is None and example.answer is not None:
        example = replace(example, answer=example.answer.strip())
    return example.digest()


def draw_disjoint(
    examples: Iterable[Example], *, train: int, evaluate: int, seed: int, task: str
) -> tuple[list[Example], list[Example]]:
    """Draws training and evaluation examples of one task that do not overlap.

    A task with too few examples gives a fifth of them, at most `evaluate`, to evaluation. The
    numbers of repeated examples, of those without an answer and of those with halves of surrogate
    pairs are logged.

    Returns
    -------
    Training examples and evaluation examples.

    Raises
    ------
    LetheError
        If fewer than ten different, non-empty examples are left.
    """
    dropped: Counter[str] = Counter()
    pool = list(distinct(examples, dropped=dropped))
    summary = (
        f"{len(pool)} usable examples ({dropped['repeated']} repeated, {dropped['empty']} empty)"
    )
    if len(pool) < 10:
        raise LetheError(f"task {task!r} has {summary}; at least 10 are needed")
    logger.info("task %s: %s", task, summary)
    _log_surrogates(task, dropped["surrogates"])
    random.Random(f"{seed}/{task}").shuffle(pool)
    heldout = min(evaluate, max(1, len(pool) // 5))
    return pool[heldout : heldout + train], pool[:heldout]


def draw_separately(
    training: Iterable[Example],
    evaluation: Iterable[Example],
    *,
    train: int,
    evaluate: int,
    seed: int,
    task: str,
) -> tuple[list[Example], list[Example]]:
    """Draws training and evaluation examples of a task whose source has its own of both.

    They may overlap and repeat, as they do in the source. The number of evaluation examples that
    are also training examples is logged, and so are those of examples without an answer and with
    halves of surrogate pairs.

    Returns
    -------
    Training examples and evaluation examples.

    Raises
    ------
    LetheError
        If there is no usable training example or no usable evaluation example.
    """
    dropped: Counter[str] = Counter()
    pools = {"training": _usable(training, dropped), "evaluation": _usable(evaluation, dropped)}
    for kind, pool in pools.items():
        if not pool:
            raise LetheError(f"task {task!r} has no usable {kind} example")
        random.Random(f"{seed}/{task}/{kind}").shuffle(pool)
    trained = pools["training"][:train]
    evaluated = pools["evaluation"][:evaluate]
    trained_set = set(trained)
    both = sum(example in trained_set for example in evaluated)
    logger.info(
        "task %s: %d to train, %d to evaluate on, %d of them both",
        task,
        len(trained),
        len(evaluated),
        both,
    )
    if dropped["empty"]:
        logger.info("task %s: %d empty examples are left out", task, dropped["empty"])
    _log_surrogates(task, dropped["surrogates"])
    return trained, evaluated


def _usable(examples: Iterable[Example], dropped: Counter[str]) -> list[Example]:
    """The examples that are not empty; `dropped` counts as in `distinct`."""
    usable = []
    for read in examples:
        if read.is_empty():
            dropped["empty"] += 1
            continue
        example = read.storable()
        if example != read:
            dropped["surrogates"] += 1
        usable.append(example)
    return usable


def chunks(documents: Iterable[Example], words: int) -> Iterator[Example]:
    """Cuts plain texts into pieces of `words` words (`word_starts`); other examples are not cut.

    The end of a document that is shorter than `words` is dropped, unless it is the whole
    document. Cutting by words, not by tokens, gives every tokenizer the same upstream examples.
    Pieces are slices of the document, so line breaks and indentation are kept.
    """
    for document in documents:
        if document.text is None:
            yield document
            continue
        starts = word_starts(document.text)
        count = max(1, len(starts) // words)
        for first in range(0, count * words, words):
            begin = starts[first] if starts else 0
            last = first + words
            end = starts[last] if last < len(starts) else len(document.text)
            yield Example(text=document.text[begin:end].rstrip())


def draw_documents(documents: Iterable[Example], words: int, seed: str) -> list[Example]:
    """Draws documents in random order until they hold `words` words in total."""
    pool = list(distinct(documents))
    random.Random(seed).shuffle(pool)
    selected = []
    total = 0
    for document in pool:
        if total >= words:
            break
        selected.append(document)
        total += _words_of(document)
    return selected


def _words_of(document: Example) -> int:
    return count_words(document.text or f"{document.prompt} {document.answer}")


def draw_upstream(
    domains: dict[str, list[Example]],
    count: int,
    heldout: float,
    words: int,
    seed: int,
    uneven: bool = False,
    corpus_words: int | None = None,
    dropped: dict[str, Counter[str]] | None = None,
) -> list[UpstreamExample]:
    """Draws upstream examples evenly from the domains and holds out a share of each domain.

    A text that stands in two domains is drawn from the first only. Otherwise it could be held out
    in one domain and replayed from the other.

    Parameters
    ----------
    domains
        Documents of each domain.
    count
        N, the number of examples over all domains.
    heldout
        Share of the examples that must never be replayed.
    words
        Words per chunk of plain text.
    uneven
        Whether a domain with too few chunks may give only those that it has.
    corpus_words
        Words per domain that the documents were drawn for, which tells a small source from a
        small draw; None: unknown.
    dropped
        Receives, for each domain, the chunks that are left out because they repeat one of this
        domain or of an earlier one, as `repeated`.

    Raises
    ------
    LetheError
        If a domain has too few chunks, with the cause.
    """
    upstream = []
    dropped = {} if dropped is None else dropped
    digests: set[str] = set()
    sizes = even_sizes(count, len(domains))
    for size, (domain, documents) in zip(sizes, domains.items(), strict=True):
        dropped[domain] = Counter()
        pool = list(distinct(chunks(documents, words), digests, dropped[domain]))
        if uneven and len(pool) > 1:
            size = min(size, len(pool))
        if len(pool) < size:
            repeated = dropped[domain]["repeated"]
            raise LetheError(
                f"upstream.domains.{domain}: {len(pool)} examples of {words} words, {size} "
                f"wanted{_reason_for_few(documents, repeated, corpus_words)}"
            )
        rng = random.Random(f"{seed}/upstream/{domain}")
        heldout_count = round(size * heldout)
        if uneven:
            # A small domain has both kinds of examples, too.
            heldout_count = min(max(1, heldout_count), size - 1)
        if heldout > 0 and not 0 < heldout_count < size:
            raise LetheError(
                f"upstream.domains.{domain}: {size} examples, of which heldout {heldout} leaves no "
                "held-out or no replayable one; raise upstream.examples"
            )
        for number, example in enumerate(rng.sample(pool, size)):
            upstream.append(
                UpstreamExample(
                    example_id=f"{domain}-{number:05d}",
                    domain=domain,
                    split="heldout" if number < heldout_count else "replayable",
                    example=example,
                )
            )
    return upstream


def _reason_for_few(documents: Sequence[Example], repeated: int, corpus_words: int | None) -> str:
    """Why a domain has too few examples, and what to do about it."""
    reason = ""
    if repeated:
        reason = f" ({repeated} more repeat an example of this domain or of one before it)"
    total = sum(map(_words_of, documents))
    if corpus_words is not None and total < corpus_words:
        # All documents were drawn, so more corpus_words would draw no more.
        return (
            f"{reason}; its source has only {total} words: give the domain more text, lower "
            "upstream.examples or upstream.words, or set upstream.uneven"
        )
    return f"{reason}; raise upstream.corpus_words or lower upstream.examples"


def without_copies_of_heldout(upstream: Sequence[UpstreamExample]) -> list[UpstreamExample]:
    """The upstream examples without replayable ones whose content is that of a held-out one."""
    heldout = _heldout_digests(upstream)
    examples = []
    for example in upstream:
        if example.split == "heldout" or _digest_of_tokens(example.example) not in heldout:
            examples.append(example)
    return examples


def count_heldout(examples: Iterable[Example], upstream: Iterable[UpstreamExample]) -> int:
    """The number of examples whose content is that of a held-out upstream example."""
    heldout = _heldout_digests(upstream)
    return sum(_digest_of_tokens(example) in heldout for example in examples)


def _heldout_digests(upstream: Iterable[UpstreamExample]) -> set[str]:
    """The digests of the contents of the held-out examples."""
    return {_digest_of_tokens(each.example) for each in upstream if each.split == "heldout"}


def domains_in_order(example_ids: Sequence[str], pool: Path) -> list[str]:
    """The domain of each of these examples of a pool, in their order."""
    domains = {example.example_id: example.domain for example in read_upstream(pool)}
    return [domains[example_id] for example_id in example_ids]


def replayable_sample(
    upstream: Sequence[UpstreamExample], count: int, seed: int
) -> list[UpstreamExample]:
    """Draws at most `count` of the examples that may be replayed; none is held out."""
    pool = [example for example in upstream if example.split == "replayable"]
    return random.Random(f"{seed}/anchors").sample(pool, min(count, len(pool)))


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes a table with the columns prompt, answer, text and hash, atomically.

    It also has the column chat if an example is a conversation.
    """
    _write_table(path, _columns(examples))


def write_upstream(path: Path, examples: Sequence[UpstreamExample]) -> None:
    """Writes example_id, domain, split, prompt, answer, text and hash, atomically."""
    labels = {
        "example_id": [example.example_id for example in examples],
        "domain": [example.domain for example in examples],
        "split": [example.split for example in examples],
    }
    _write_table(path, labels | _columns([example.example for example in examples]))


def write_corpus(path: Path, domains: dict[str, list[Example]]) -> None:
    """Writes the documents of every domain, for pretraining, atomically."""
    labels: list[str] = []
    documents: list[Example] = []
    for domain, texts in domains.items():
        labels += [domain] * len(texts)
        documents += texts
    _write_table(path, {"domain": labels} | _columns(documents))


def _columns(examples: Sequence[Example]) -> dict[str, list]:
    columns = {
        "prompt": [example.prompt for example in examples],
        "answer": [example.answer for example in examples],
        "text": [example.text for example in examples],
        "hash": [example.digest() for example in examples],
    }
    chats = [example.chat for example in examples]
    # Tables without conversations keep their bytes.
    return columns | {"chat": chats} if any(chats) else columns


def _write_table(path: Path, columns: dict[str, list]) -> None:
    arrays = {key: pa.array(values, pa.string()) for key, values in columns.items()}
    with atomic_write(path) as part:
        # Small row groups, so that a reader holds only one of them in memory.
        pq.write_table(pa.table(arrays), part, row_group_size=8 * READ_AT_ONCE)


def read_examples(path: Path) -> list[Example]:
    """Reads the examples of any table that this module wrote.

    Raises
    ------
    LetheError
        If the file cannot be read, or the stored hash of an example is not its hash.
    """
    return list(_iterate(path))


def _iterate(path: Path) -> Iterator[Example]:
    columns = ["prompt", "answer", "text", "hash"]
    number = 0
    try:
        # Reading ahead would keep the complete file in memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            if "chat" in file.schema_arrow.names:
                columns.append("chat")
            _refuse_other_types(path, file.schema_arrow, columns)
            for batch in file.iter_batches(READ_AT_ONCE, columns=columns):
                batch.validate(full=True)
                for line in batch.select(columns).to_pylist():
                    digest = line.pop("hash")
                    example = Example(**line)
                    if example.digest() != digest:
                        raise LetheError(f"{path}: line {number} was changed after it was written")
                    number += 1
                    yield example
    except (OSError, ValueError, pa.ArrowException, KeyError) as error:
        raise LetheError(_not_examples(path, error))


def _refuse_other_types(path: Path | str, schema: pa.Schema, columns: list[str]) -> None:
    for name in columns:
        if name in schema.names and not _is_text(schema.field(name).type):
            raise LetheError(
                _not_examples(path, f"column {name!r} is {schema.field(name).type}, not text")
            )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _not_examples(path: Path | str, reason: object) -> str:
    return (
        f"{path}: not a table of examples ({reason}); if the workflow wrote this file, move it "
        "away and run again"
    )


def _label_problem(table: pa.Table) -> str | None:
    """The reason why ids, domains or splits cannot be right; None if there is none."""
    for name in ("example_id", "domain"):
        column = table[name].cast(pa.string())
        empty = pc.sum(pc.fill_null(pc.equal(column, ""), True)).as_py()
        if empty:
            return f"{empty} of its {len(table)} examples have no {name}"
    counts = pc.value_counts(table["example_id"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example_id = repeated[0]["values"].as_py()
        return f"{len(repeated)} example id(s) stand more than once, such as {example_id!r}"
    unknown = {split for split in pc.unique(table["split"]).to_pylist() if split not in SPLITS}
    if unknown:
        split = min(unknown, key=str)
        return f"has the split {split!r}, but a split is {' or '.join(SPLITS)}"
    return None


class UpstreamFile(Sequence[UpstreamExample]):
    """Upstream examples on disk. Ids are in memory; texts are read a thousand at a time.

    Raises
    ------
    LetheError
        If the file is no table of upstream examples, an id is missing or stands twice, a domain is
        missing or a split is unknown; or, when texts are read, if the stored hash of an example is
        not its hash.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        required = ["example_id", "domain", "split"]
        try:
            refuse_large_parquet(path)
            with pq.ParquetFile(path) as file:
                missing = sorted(set(required) - set(file.schema_arrow.names))
                if missing:
                    raise LetheError(f"{path}: lacks the column(s) {missing} of upstream examples")
                _refuse_other_types(path, file.schema_arrow, required)
                table = file.read(required)
                table.validate(full=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise LetheError(_not_examples(path, error))
        self._ids = table["example_id"].combine_chunks()
        self._domains = table["domain"].combine_chunks()
        self._splits = table["split"].combine_chunks()
        if problem := _label_problem(table):
            raise LetheError(f"{path}: {problem}; write the pool again with lethe pool")

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[UpstreamExample]:
        for index, example in enumerate(_iterate(self.path)):
            yield UpstreamExample(
                example_id=self._ids[index].as_py(),
                domain=self._domains[index].as_py(),
                split=self._splits[index].as_py(),
                example=example,
            )

    def __getitem__(self, index):
        if isinstance(index, slice):
            indices = set(range(len(self))[index])
            selected = [example for i, example in enumerate(self) if i in indices]
            return selected[::-1] if (index.step or 1) < 0 else selected
        return next(islice(self, range(len(self))[index], None))

    @property
    def example_ids(self) -> list[str]:
        """Ids in order; no text is read."""
        return self._ids.to_pylist()


def read_upstream(path: Path | str) -> UpstreamFile:
    """Opens a table that `write_upstream` wrote; texts are read and checked as they are needed."""
    return UpstreamFile(path)


def ids_of(examples: Sequence[UpstreamExample]) -> list[str]:
    """Example ids in order. The texts of a file are not read."""
    if isinstance(examples, UpstreamFile):
        return examples.example_ids
    return [example.example_id for example in examples]


def upstream_digest(examples: Sequence[UpstreamExample]) -> str:
    """SHA-256 of ids, splits and contents, in order. All rows of one Z have the same."""
    digest = hashlib.sha256()
    separator = ""
    for upstream in examples:
        line = f"{upstream.example_id} {upstream.split} {upstream.example.digest()}"
        digest.update(f"{separator}{line}".encode())
        separator = "\n"
    return digest.hexdigest()
