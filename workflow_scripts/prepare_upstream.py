from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.examples import read_upstream, write_corpus, write_upstream
from lethe.data.upstream_pool import PoolSize, draw_pool
from lethe.jobs.running import run


def prepare_upstream(
    upstream: Path, corpus: Path, domains: dict, settings: dict, cache: Path, seed: int
) -> None:
    """Draws documents of the domains, and upstream examples from among them, or copies a pool."""
    if "pool" in settings:
        write_upstream(upstream, read_upstream(settings["pool"]))
        write_corpus(corpus, {})
        return
    sources = {}
    for domain, entry in domains.items():
        sources[domain] = (TypeAdapter(Source).validate_python(entry["source"]), entry["where"])
    size = TypeAdapter(PoolSize).validate_python(settings)
    pool = draw_pool(sources, size, seed=seed, cache=cache)
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
        cache=Path(snakemake.params.cache),
        seed=snakemake.params.seed,
    )
