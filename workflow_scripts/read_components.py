from pathlib import Path

from lethe import tables
from lethe.analysis.component_reading import (
    domain_records,
    find_components,
    grow_task_tree,
    loading_records,
)
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def read_components(
    matrix: Path,
    upstream: Path | None,
    loadings: Path,
    domain_tests: Path | None,
    tree: Path,
) -> None:
    """Writes the tasks, texts and domains of each component of Z, and the tree of its tasks."""
    z = forgetting_matrix.read_matrix(matrix)
    domains = {}
    if upstream is not None:
        domains = {example.example_id: example.domain for example in read_upstream(upstream)}
    factors = find_components(z)
    tables.write_csv(loadings, loading_records(factors, domains))
    if domain_tests is not None:
        tables.write_csv(domain_tests, domain_records(factors, domains))
    tables.write_csv(tree, grow_task_tree(z).records())


if __name__ == "__main__":
    upstream = snakemake.input.get("upstream")
    domain_tests = snakemake.output.get("domain_tests")
    run(
        read_components,
        snakemake.log[0],
        matrix=Path(snakemake.input.matrix),
        upstream=Path(upstream) if upstream else None,
        loadings=Path(snakemake.output.loadings),
        domain_tests=Path(domain_tests) if domain_tests else None,
        tree=Path(snakemake.output.tree),
    )
