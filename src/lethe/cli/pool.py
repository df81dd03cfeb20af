"""`lethe pool`: the texts that a model should not forget, drawn from their sources."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lethe.cli.options import AsJson, OutputFile
from lethe.cli.output import print_json
from lethe.errors import LetheError

if TYPE_CHECKING:
    from lethe.data.examples import UpstreamExample


def make_pool(
    sources: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCES.yaml",
            help="The sections sources and upstream of an experiment, or a whole experiment.",
        ),
    ],
    output: OutputFile = Path("pool.parquet"),
    as_json: AsJson = False,
) -> None:
    """Draw the texts that the model should not forget, and hold some of them out.

    The file SOURCES.yaml has the keys sources, upstream and seed of an experiment. Examples are
    drawn evenly from the domains. A quarter of them (upstream.heldout) is never replayed, so that
    you can judge on it. The same file and seed give the same pool. Paths are relative to the
    current folder.

    Example::

      lethe pool own/own-data.yaml -o pool.parquet
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.config.pool_file import load_pool_settings
    from lethe.data.examples import WITH_SURROGATES, upstream_digest, write_upstream
    from lethe.data.upstream_pool import PoolSize, draw_pool
    from lethe.files import cache_folder

    settings = load_pool_settings(sources)
    size = settings.upstream.model_dump(exclude={"domains"})
    pool = draw_pool(
        {domain: settings.source_of(domain) for domain in settings.upstream.domains},
        PoolSize(**size),
        seed=settings.seed,
        cache=Path(cache_folder()),
    )
    digest = upstream_digest(pool.examples)
    if not _is_written(output, pool.examples, digest):
        write_upstream(output, pool.examples)
    summary: dict[str, Any] = {
        "pool": str(output),
        "examples": len(pool.examples),
        "digest": digest,
        "domains": {domain: asdict(counts) for domain, counts in pool.counts.items()},
    }
    if as_json:
        print_json(summary)
        return
    for domain, counts in pool.counts.items():
        left_out = f"{counts.repeated} repeated and {counts.empty} empty records left out"
        if counts.repeated_pieces:
            left_out += f", and {counts.repeated_pieces} pieces that repeat an earlier one"
        if counts.surrogates:
            left_out += f"; {counts.surrogates} records {WITH_SURROGATES}"
        print(f"{domain}: {counts.replayable} replayable, {counts.heldout} held out; {left_out}")
    print(f"{output}: {len(pool.examples)} examples")


def _is_written(path: Path, examples: "list[UpstreamExample]", digest: str) -> bool:
    """Whether the file holds these examples already.

    Raises
    ------
    LetheError
        If it exists and holds anything else.
    """
    from lethe.data.examples import read_upstream, upstream_digest

    if not path.exists():
        return False
    pool = read_upstream(path)
    if len(pool) != len(examples) or upstream_digest(pool) != digest:
        raise LetheError(
            f"{path}: exists and holds another pool; losses measured on it do not fit the new one. "
            "Choose another name with -o"
        )
    return True
