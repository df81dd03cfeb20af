from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.examples import draw_documents, draw_upstream, write_corpus, write_upstream
from lethe.data.sources import read_source
from lethe.jobs.running import run


def prepare_upstream(
    upstream: Path, corpus: Path, domains: dict, settings: dict, archive: str | None, seed: int
) -> None:
    """Draws each domain's documents, and the upstream examples from among them."""
    documents = {}
    for domain, named in domains.items():
        source = TypeAdapter(Source).validate_python(named["source"])
        found = read_source(source, named["where"], archive=archive, upstream=True)
        documents[domain] = draw_documents(found, settings["corpus_words"], f"{seed}/{domain}")
    count, heldout, words = settings["examples"], settings["heldout"], settings["words"]
    drawn = draw_upstream(documents, count, heldout, words, seed, settings["uneven"])
    write_upstream(upstream, drawn)
    write_corpus(corpus, documents)


if __name__ == "__main__":
    params = snakemake.params
    settings = {"domains": params.domains, "settings": params.upstream, "archive": params.archive}
    paths = {name: Path(snakemake.output[name]) for name in ("upstream", "corpus")}
    run(prepare_upstream, snakemake.log[0], **paths, **settings, seed=params.seed)
