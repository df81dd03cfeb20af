from pathlib import Path

import pandas as pd

from lethe import tables
from lethe.cost.ledger import FinishedRow, ledger_lines, ledger_text
from lethe.files import atomic_write
from lethe.jobs.running import run
from lethe.matrix import rows


def ledger(plan: Path, row_files: dict[str, dict[str, list[str]]], table: Path, text: Path) -> None:
    """Compares the records of the finished rows with the plan."""
    planned = pd.read_csv(plan, keep_default_na=False).to_dict("records")
    finished = {}
    for rule, files_by_model in row_files.items():
        for model, files in files_by_model.items():
            finished[model, rule] = []
            for file in files:
                finished[model, rule] += read_finished_rows(Path(file))
    lines = ledger_lines(planned, finished)
    tables.write_csv(table, lines)
    with atomic_write(text) as part:
        part.write_text(ledger_text(lines), "utf-8")


def read_finished_rows(path: Path) -> list[FinishedRow]:
    """Reads the rows of a file; the first has the size of the file."""
    finished = []
    for row in rows.read_rows(path):
        finished.append(FinishedRow(row=row, file_bytes=0 if finished else path.stat().st_size))
    return finished


if __name__ == "__main__":
    run(
        ledger,
        snakemake.log[0],
        plan=Path(snakemake.input.plan),
        row_files=snakemake.params.rows,
        table=Path(snakemake.output.ledger),
        text=Path(snakemake.output.text),
    )
