from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.bigbench import cached_extract, package_of
from lethe.data.examples import draw_documents, draw_upstream, write_corpus, write_upstream
from lethe.data.sources import read_source
from lethe.jobs.running import run


def prepare_upstream(
    upstream: Path, corpus: Path, domains: dict, settings: dict, cache: Path, seed: int
) -> None:
    """Draws each domain's documents, and the upstream examples from among them."""
    documents = {}
    for domain, entry in domains.items():
        source = TypeAdapter(Source).validate_python(entry["source"])
        archive = cached_extract(package_of(source), cache) if source.kind == "bigbench" else None
        texts = read_source(source, entry["where"], archive=archive, upstream=True)
        documents[domain] = draw_documents(texts, settings["corpus_words"], f"{seed}/{domain}")
    examples = draw_upstream(
        documents,
        count=settings["examples"],
        heldout=settings["heldout"],
        words=settings["words"],
        seed=seed,
        uneven=settings["uneven"],
    )
    write_upstream(upstream, examples)
    write_corpus(corpus, documents)


if __name__ == "__main__":
    run(
        prepare_upstream,
        snakemake.log[0],
        upstream=Path(snakemake.output.upstream),
        corpus=Path(snakemake.output.corpus),
        domains=snakemake.params.domains,
        settings=snakemake.params.upstream,
        cache=Path(snakemake.params.cache),
        seed=snakemake.params.seed,
    )
