"""The pool: upstream examples drawn from their domains, a share of them held out."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lethe.config.data_settings import Source
from lethe.data.bigbench import cached_extract, package_of
from lethe.data.examples import (
    Example,
    UpstreamExample,
    distinct,
    draw_documents,
    draw_upstream,
)
from lethe.data.sources import read_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolSize:
    """How many examples a pool has, and how long its plain texts are.

    Attributes
    ----------
    examples
        Number of examples over all domains.
    heldout
        Share of them that is never replayed.
    words
        Words per piece of plain text.
    corpus_words
        Words per domain of the documents that the pieces are cut from.
    uneven
        Whether a domain with too few examples gives only those that it has.
    """

    examples: int
    heldout: float
    words: int
    corpus_words: int
    uneven: bool


@dataclass(frozen=True)
class DomainCounts:
    """Examples of one domain in a pool, and what was left out.

    Attributes
    ----------
    empty, repeated
        Records of its source that were left out.
    repeated_pieces
        Pieces of its documents that were left out, because they repeat a piece of this domain or of
        an earlier one.
    surrogates
        Records with halves of surrogate pairs, which became `?`.
    """

    replayable: int
    heldout: int
    empty: int
    repeated: int
    repeated_pieces: int
    surrogates: int


@dataclass(frozen=True)
class UpstreamPool:
    """Upstream examples, the documents that they were cut from, and counts, by domain."""

    examples: list[UpstreamExample]
    documents: dict[str, list[Example]]
    counts: dict[str, DomainCounts]


def draw_pool(
    domains: Mapping[str, tuple[Source, str]],
    size: PoolSize,
    *,
    seed: int,
    cache: Path,
) -> UpstreamPool:
    """Draws each domain's documents, and the upstream examples from among them.

    Parameters
    ----------
    domains
        Source of each domain, and the part of it that the domain reads.
    cache
        Folder of the BIG-bench extract, which is fetched into it if a source needs it.

    Raises
    ------
    LetheError
        If a source cannot be fetched or read, or a domain has too few examples.
    """
    documents = {}
    dropped: dict[str, Counter[str]] = {}
    for domain, (source, where) in domains.items():
        archive = cached_extract(package_of(source), cache) if source.kind == "bigbench" else None
        texts = read_source(source, where, archive=archive, upstream=True)
        dropped[domain] = Counter()
        usable = distinct(texts, dropped=dropped[domain])
        documents[domain] = draw_documents(usable, size.corpus_words, f"{seed}/{domain}")
    pieces: dict[str, Counter[str]] = {}
    examples = draw_upstream(
        documents,
        count=size.examples,
        heldout=size.heldout,
        words=size.words,
        seed=seed,
        uneven=size.uneven,
        corpus_words=size.corpus_words,
        dropped=pieces,
    )
    by_split = Counter((example.domain, example.split) for example in examples)
    counts = {}
    for domain, left_out in dropped.items():
        counts[domain] = DomainCounts(
            replayable=by_split[domain, "replayable"],
            heldout=by_split[domain, "heldout"],
            empty=left_out["empty"],
            repeated=left_out["repeated"],
            repeated_pieces=pieces[domain]["repeated"],
            surrogates=left_out["surrogates"],
        )
        logger.info("domain %s: %s", domain, counts[domain])
    return UpstreamPool(examples=examples, documents=documents, counts=counts)
