"""`lethe compare`: what a fine-tuned model has forgotten, by domain and by example."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lethe.cli.options import AsJson
from lethe.cli.output import print_json
from lethe.errors import LetheError

if TYPE_CHECKING:
    from lethe.analysis.compare_rows import Comparison, DomainLoss

# Examples that the terminal lists.
LISTED = 5


def compare_losses(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="Losses of the untouched base model.")
    ],
    after: Annotated[
        list[Path], typer.Argument(metavar="AFTER", help="Losses of fine-tuned models.")
    ],
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool",
            metavar="FILE",
            help="The pool: the verdict is then on its held-out examples, and texts are shown.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Parquet file for the forgetting of each example, by the first AFTER.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Page to write.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare losses before and after a fine-tune, and say what was forgotten.

    The files are those of lethe score. Forgetting is the rise in loss, in nats per scored token.
    Intervals are over the examples and do not cover another seed of the fine-tune. Examples without
    a loss are not in the verdict; a note counts them by domain. Files of another pool, base model
    or other settings are refused. The file of -o is what lethe mix reads as --lost. The page needs
    no network.

    Examples::

      lethe compare base.parquet after.parquet --pool pool.parquet -o lost.parquet
      lethe compare base.parquet plain.parquet replayed.parquet --pool pool.parquet --html lost.html
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.analysis.compare_rows import compare_rows, domain_of
    from lethe.files import write_text
    from lethe.matrix import rows
    from lethe.report.lost_page import render_lost_page

    if html is not None:
        _refuse_other_files(html)
    before = rows.read_row(base)
    texts, domains, splits = None, None, None
    if pool is not None:
        texts, domains, splits = _read_pool(pool, before, base)
    comparisons = compare_rows(
        before,
        base,
        [(path, rows.read_row(path)) for path in after],
        domains=domains,
        splits=splits,
    )
    if output is not None:
        _write_lost(output, comparisons[0], base, after[0])
    if html is not None:
        by_id = domains or {name: domain_of(name) for name in before.example_ids}
        page = render_lost_page(comparisons, base.name, domains=by_id, texts=texts)
        write_text(html, page)
    if as_json:
        print_json([_facts(comparison) for comparison in comparisons])
        return
    for number, comparison in enumerate(comparisons):
        if number:
            print()
        print(_text(comparison, comparisons[0].name))
    for path in (output, html):
        if path is not None:
            print(f"written: {path}")


def _refuse_other_files(path: Path) -> None:
    """Refuses to write a page in the place of a file that is none, such as one with losses."""
    if not path.exists():
        return
    if path.is_dir():
        raise LetheError(f"--html {path}: is a folder; give the name of a file")
    with path.open("rb") as stream:
        begins = stream.read(64).lstrip().lower()
    if not begins.startswith((b"<!doctype html", b"<html")):
        raise LetheError(f"--html {path}: exists and is no page; choose another name")


def _read_pool(pool: Path, base: Any, base_path: Path) -> tuple[dict, dict, dict]:
    """Texts, domains and splits by example id."""
    from lethe.data.examples import read_upstream, upstream_digest

    upstream = read_upstream(pool)
    if base.settings.get("upstream") != upstream_digest(upstream):
        raise LetheError(
            f"{base_path}: was measured on another pool than {pool} (other examples, texts or "
            "splits); give the pool that it was measured on"
        )
    texts, domains, splits = {}, {}, {}
    for example in upstream:
        texts[example.example_id] = example.example
        domains[example.example_id] = example.domain
        splits[example.example_id] = example.split
    return texts, domains, splits


def _write_lost(path: Path, comparison: "Comparison", base: Path, after: Path) -> None:
    from dataclasses import replace

    from lethe.files import sha256
    from lethe.matrix import rows

    about = comparison.row.about | {"compared": {"base": sha256(base), "after": sha256(after)}}
    row = replace(comparison.row, about=about)
    if path.exists():
        written = rows.read_row(path)
        if written.about.get("compared") != about["compared"]:
            raise LetheError(
                f"{path}: exists and holds another comparison; choose another name with -o"
            )
        return
    rows.write_row(path, row)


def _text(comparison: "Comparison", first: str) -> str:
    from lethe.tables import as_text

    columns = {
        "domain": str,
        "examples": "{:,}".format,
        "forgetting": "{:+.4f}".format,
        "low": "{:+.4f}".format,
        "high": "{:+.4f}".format,
        "drift": "{:.4f}".format,
        "risen": "{:.0%}".format,
    }
    entries = [*comparison.domains, comparison.overall]
    for split in comparison.splits:
        # All held-out examples are the line before already.
        if comparison.overall.domain == "all" or split.domain != "heldout":
            entries.append(split)
    table = as_text([_without_nan(_line(entry)) for entry in entries], columns)
    lines = [comparison.verdict(), "", table]
    if comparison.against_first is not None:
        lines.append(f"difference to {first}: {comparison.against_first.as_text()} nats")
    names = []
    for number in comparison.most_forgotten(LISTED):
        row = comparison.row
        names.append(f"{row.example_ids[number]} ({row.forgetting[number]:+.3f})")
    lines += [f"most forgotten: {', '.join(names)}", *comparison.notes]
    return "\n".join(lines)


def _line(entry: "DomainLoss") -> dict[str, Any]:
    return {
        "domain": entry.domain,
        "examples": entry.forgetting.n,
        "forgetting": entry.forgetting.mean,
        "low": entry.forgetting.low,
        "high": entry.forgetting.high,
        "drift": entry.drift,
        "risen": entry.risen,
    }


def _without_nan(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the table; what a domain without a measured example does not have is missing."""
    return {key: None if value != value else value for key, value in line.items()}


def _facts(comparison: "Comparison") -> dict[str, Any]:
    facts = {
        "file": comparison.name,
        "verdict": comparison.verdict(),
        "overall": _line(comparison.overall),
        "domains": [_line(entry) for entry in comparison.domains],
        "splits": [_line(entry) for entry in comparison.splits],
        "notes": comparison.notes,
        "most_forgotten": [],
    }
    row = comparison.row
    for number in comparison.most_forgotten(LISTED):
        facts["most_forgotten"].append(
            {"example_id": row.example_ids[number], "forgetting": float(row.forgetting[number])}
        )
    if comparison.against_first is not None:
        difference = comparison.against_first
        facts["against_first"] = {
            "mean": difference.mean,
            "low": difference.low,
            "high": difference.high,
        }
    return facts
