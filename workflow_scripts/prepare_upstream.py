from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.examples import write_corpus, write_upstream
from lethe.data.upstream_pool import PoolSize, draw_pool
from lethe.jobs.running import run


def prepare_upstream(
    upstream: Path, corpus: Path, domains: dict, settings: dict, archive: str | None, seed: int
) -> None:
    """Draws each domain's documents, and the upstream examples from among them."""
    sources = {}
    for domain, entry in domains.items():
        sources[domain] = (TypeAdapter(Source).validate_python(entry["source"]), entry["where"])
    size = TypeAdapter(PoolSize).validate_python(settings)
    pool = draw_pool(sources, size, seed=seed, archive=archive)
    write_upstream(upstream, pool.examples)
    write_corpus(corpus, pool.documents)


if __name__ == "__main__":
    run(
        prepare_upstream,
        snakemake.log[0],
        upstream=Path(snakemake.output.upstream),
        corpus=Path(snakemake.output.corpus),
        domains=snakemake.params.domains,
        settings=snakemake.params.upstream,
        archive=snakemake.params.archive,
        seed=snakemake.params.seed,
    )
