"""Examples and the parquet tables that hold them."""

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import LetheError
from lethe.files import whole

READ_AT_ONCE = 1024  # examples


@dataclass(frozen=True)
class Example:
    """A prompt with its answer, or plain text: the other part is None."""

    prompt: str | None = None
    answer: str | None = None
    text: str | None = None

    def digest(self) -> str:
        """SHA-256 over the three parts, in hex."""
        parts = "\x1f".join("\x00" if part is None else part for part in self._parts())
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()

    def storable(self) -> "Example":
        """Itself, halves of surrogate pairs, which JSON may hold and UTF-8 may not, as `?`."""
        if all(part is None or part.isascii() for part in self._parts()):
            return self
        parts = (p and p.encode("utf-8", "replace").decode("utf-8") for p in self._parts())
        return Example(*parts)

    def is_empty(self) -> bool:
        """True if there is nothing to compute a loss on."""
        return not (self.text if self.answer is None else self.answer or "").strip()

    def _parts(self) -> tuple[str | None, str | None, str | None]:
        return self.prompt, self.answer, self.text


@dataclass(frozen=True)
class UpstreamExample:
    """An upstream example with its id, domain and whether it may be replayed."""

    example_id: str
    domain: str
    split: str
    example: Example


def distinct(
    examples: Iterable[Example],
    seen: set[str] | None = None,
    dropped: Counter[str] | None = None,
) -> Iterator[Example]:
    """Drops repeated and empty examples, keeping the first of each.

    `seen` are digests of examples that count as repeated; those given are added to it. `dropped`
    counts what is left out, as `repeated` and `empty`.
    """
    seen = set() if seen is None else seen
    dropped = Counter() if dropped is None else dropped
    for example in map(Example.storable, examples):
        digest = example.digest()
        if example.is_empty():
            dropped["empty"] += 1
        elif digest in seen:
            dropped["repeated"] += 1
        else:
            seen.add(digest)
            yield example


def train_and_eval(
    examples: Iterable[Example], train: int, evaluate: int, seed: int, task: str
) -> tuple[list[Example], list[Example]]:
    """Draws disjoint training and evaluation examples of one task.

    A task with too few examples gives a fifth of them, at most `evaluate`, to evaluation. How
    many examples were repeated or without an answer goes to stderr.

    Raises
    ------
    LetheError
        If fewer than ten different, non-empty examples are left.
    """
    dropped: Counter[str] = Counter()
    pool = list(distinct(examples, dropped=dropped))
    said = f"{len(pool)} usable examples ({dropped['repeated']} repeated, {dropped['empty']} empty)"
    if len(pool) < 10:
        raise LetheError(f"task {task!r} has {said}; at least 10 are needed")
    print(f"task {task}: {said}", file=sys.stderr)
    random.Random(f"{seed}/{task}").shuffle(pool)
    held = min(evaluate, max(1, len(pool) // 5))
    return pool[held : held + train], pool[:held]


def train_and_own_eval(
    trained: Iterable[Example],
    evaluated: Iterable[Example],
    train: int,
    evaluate: int,
    seed: int,
    task: str,
) -> tuple[list[Example], list[Example]]:
    """Draws training and evaluation examples of a task that has its own of both.

    They may overlap and repeat, as the source has them: how many of the evaluation examples are
    trained on goes to stderr.

    Raises
    ------
    LetheError
        If there is no usable example of either.
    """
    found = {"training": trained, "evaluation": evaluated}
    pools = {
        kind: [example.storable() for example in examples if not example.is_empty()]
        for kind, examples in found.items()
    }
    if empty := [kind for kind, pool in pools.items() if not pool]:
        raise LetheError(f"task {task!r} has no usable {empty[0]} example")
    for kind, pool in pools.items():
        random.Random(f"{seed}/{task}/{kind}").shuffle(pool)
    drawn, held = pools["training"][:train], pools["evaluation"][:evaluate]
    known = set(drawn)
    both = sum(example in known for example in held)
    print(
        f"task {task}: {len(drawn)} to train, {len(held)} to evaluate on, {both} of them both",
        file=sys.stderr,
    )
    return drawn, held


def chunks(documents: Iterable[Example], words: int) -> Iterator[Example]:
    """Cuts plain texts into pieces of `words` words; prompt-answer pairs pass whole.

    The rest of a document shorter than `words` is dropped unless it is all there is. Cutting by
    words, not tokens, keeps the upstream examples the same for every tokenizer. Pieces are
    slices of the original: line breaks and indentation stay.
    """
    for document in documents:
        if document.text is None:
            yield document
            continue
        starts = _word_starts(document.text)
        whole_chunks = max(1, len(starts) // words)
        for i in range(whole_chunks):
            begin = starts[i * words] if starts else 0
            following = starts[(i + 1) * words : (i + 1) * words + 1]
            end = following[0] if following else len(document.text)
            yield Example(text=document.text[begin:end].rstrip())


def _word_starts(text: str) -> list[int]:
    return [
        i for i, char in enumerate(text) if not char.isspace() and (i == 0 or text[i - 1].isspace())
    ]


def draw_documents(documents: Iterable[Example], words: int, seed: str) -> list[Example]:
    """Draws documents in random order until they hold `words` words together."""
    pool = list(distinct(documents))
    random.Random(seed).shuffle(pool)
    drawn, total = [], 0
    for document in pool:
        if total >= words:
            break
        drawn.append(document)
        total += len((document.text or f"{document.prompt} {document.answer}").split())
    return drawn


def draw_upstream(
    domains: dict[str, list[Example]],
    count: int,
    heldout: float,
    words: int,
    seed: int,
    uneven: bool = False,
) -> list[UpstreamExample]:
    """Draws N upstream examples evenly from the domains and holds a share of each domain out.

    A text that stands in two domains counts in the first only: held out in one, it could be
    replayed from the other. If `uneven`, a domain with too few chunks gives all that it has.

    Raises
    ------
    LetheError
        If a domain has too few chunks.
    """
    drawn = []
    seen: set[str] = set()
    for position, (domain, documents) in enumerate(domains.items()):
        wanted = count // len(domains) + (position < count % len(domains))
        pool = list(distinct(chunks(documents, words), seen))
        wanted = min(wanted, len(pool)) if uneven and len(pool) > 1 else wanted
        if len(pool) < wanted:
            raise LetheError(
                f"upstream.domains.{domain}: {len(pool)} examples of {words} words, {wanted} "
                "wanted; raise upstream.corpus_words or lower upstream.examples"
            )
        rng = random.Random(f"{seed}/upstream/{domain}")
        chosen = rng.sample(pool, wanted)
        held = round(wanted * heldout)
        for i, example in enumerate(chosen):
            split = "heldout" if i < held else "replayable"
            drawn.append(UpstreamExample(f"{domain}-{i:05d}", domain, split, example))
    return drawn


def replayable_sample(
    upstream: Sequence[UpstreamExample], count: int, seed: int
) -> list[UpstreamExample]:
    """At most `count` examples that may be replayed, drawn by the seed: none that is held out."""
    pool = [example for example in upstream if example.split == "replayable"]
    return random.Random(f"{seed}/anchors").sample(pool, min(count, len(pool)))


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes a table prompt, answer, text, hash; whole or not at all."""
    _write(path, _columns(examples))


def write_upstream(path: Path, examples: Sequence[UpstreamExample]) -> None:
    """Writes example_id, domain, split, prompt, answer, text, hash; whole or not at all."""
    head = {
        "example_id": [example.example_id for example in examples],
        "domain": [example.domain for example in examples],
        "split": [example.split for example in examples],
    }
    _write(path, head | _columns([example.example for example in examples]))


def write_corpus(path: Path, domains: dict[str, list[Example]]) -> None:
    """Writes the documents of every domain, for pretraining; whole or not at all."""
    pairs = [(domain, document) for domain, documents in domains.items() for document in documents]
    _write(path, {"domain": [d for d, _ in pairs]} | _columns([e for _, e in pairs]))


def _columns(examples: Sequence[Example]) -> dict[str, list]:
    return {
        "prompt": [example.prompt for example in examples],
        "answer": [example.answer for example in examples],
        "text": [example.text for example in examples],
        "hash": [example.digest() for example in examples],
    }


def _write(path: Path, columns: dict[str, list]) -> None:
    arrays = {key: pa.array(values, pa.string()) for key, values in columns.items()}
    with whole(path) as part:
        # Row groups that are read one after the other.
        pq.write_table(pa.table(arrays), part, row_group_size=8 * READ_AT_ONCE)


def read_examples(path: Path) -> list[Example]:
    """Reads the examples of any table written here.

    Raises
    ------
    LetheError
        If the file cannot be read or an example does not have the hash beside it.
    """
    return list(_stored(path))


def _stored(path: Path) -> Iterator[Example]:
    columns = ["prompt", "answer", "text", "hash"]
    number = 0
    try:
        # Reading ahead would keep the whole file in memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(READ_AT_ONCE, columns=columns):
                lines = zip(*(batch[name].to_pylist() for name in columns), strict=True)
                for *parts, digest in lines:
                    example = Example(*parts)
                    if example.digest() != digest:
                        raise LetheError(f"{path}: line {number} was changed after it was written")
                    number += 1
                    yield example
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LetheError(f"{path}: not a table of examples ({error}); delete it, run again")


class UpstreamFile(Sequence[UpstreamExample]):
    """Upstream examples on disk: texts are read a thousand at a time, ids are held.

    Raises
    ------
    LetheError
        If the file is no table of upstream examples; while reading on, if an example does not
        have the hash beside it.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        wanted = ["example_id", "domain", "split"]
        try:
            with pq.ParquetFile(path) as file:
                missing = set(wanted) - set(file.schema_arrow.names)
                table = file.read([name for name in wanted if name not in missing])
        except (OSError, pa.ArrowException) as error:
            raise LetheError(f"{path}: not a table of examples ({error}); delete it, run again")
        if missing:
            raise LetheError(f"{path}: lacks the column(s) {sorted(missing)}; delete it, run again")
        self._ids, self._domains, self._splits = (table[name].combine_chunks() for name in wanted)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[UpstreamExample]:
        for place, example in enumerate(_stored(self.path)):
            yield self._labelled(place, example)

    def __getitem__(self, place):
        if isinstance(place, slice):
            chosen = set(range(len(self))[place])
            found = [example for i, example in enumerate(self) if i in chosen]
            return found[::-1] if (place.step or 1) < 0 else found
        return next(islice(self, range(len(self))[place], None))

    def _labelled(self, place: int, example: Example) -> UpstreamExample:
        labels = (column[place].as_py() for column in (self._ids, self._domains, self._splits))
        return UpstreamExample(*labels, example)

    @property
    def example_ids(self) -> list[str]:
        """Ids in order, without reading a text."""
        return self._ids.to_pylist()


def read_upstream(path: Path | str) -> UpstreamFile:
    """What `write_upstream` wrote, with the checks of `read_examples`, read as it is needed."""
    return UpstreamFile(path)


def ids_of(examples: Sequence[UpstreamExample]) -> list[str]:
    """Example ids in order; of a file, without reading its texts."""
    if isinstance(examples, UpstreamFile):
        return examples.example_ids
    return [example.example_id for example in examples]


def upstream_digest(examples: Sequence[UpstreamExample]) -> str:
    """SHA-256 over ids, splits and contents, in order: rows of one Z share it."""
    digest = hashlib.sha256()
    for place, e in enumerate(examples):
        line = f"{e.example_id} {e.split} {e.example.digest()}"
        digest.update((f"\n{line}" if place else line).encode())
    return digest.hexdigest()
