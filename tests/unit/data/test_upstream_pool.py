"""The pool is the workflow's, to the byte."""

from lethe.config.data_settings import StdlibSource
from lethe.data.examples import draw_documents, draw_upstream, write_corpus, write_upstream
from lethe.data.sources import read_source
from lethe.data.upstream_pool import DomainCounts, PoolSize, draw_pool

SIZE = PoolSize(examples=30, heldout=0.25, words=10, corpus_words=2000, uneven=False)
SOURCE = StdlibSource(kind="stdlib")


def test_the_pool_has_the_bytes_that_its_parts_gave_before(tmp_path):
    domains = {"json": (SOURCE, "json"), "email": (SOURCE, "email")}
    pool = draw_pool(domains, SIZE, seed=1, cache=tmp_path)
    documents = {}
    for domain, (source, where) in domains.items():
        documents[domain] = draw_documents(read_source(source, where), 2000, f"1/{domain}")
    examples = draw_upstream(documents, count=30, heldout=0.25, words=10, seed=1)
    write_upstream(tmp_path / "a.parquet", pool.examples)
    write_upstream(tmp_path / "b.parquet", examples)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write_corpus(tmp_path / "c.parquet", pool.documents)
    write_corpus(tmp_path / "d.parquet", documents)
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "d.parquet").read_bytes()
    assert pool.counts["json"] == DomainCounts(
        replayable=11, heldout=4, empty=0, repeated=0, repeated_pieces=0, surrogates=0
    )
