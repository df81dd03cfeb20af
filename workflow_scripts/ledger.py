from pathlib import Path

from lethe import tables
from lethe.cost.ledger import ledger_lines, ledger_text, read_finished_rows
from lethe.files import write_text
from lethe.jobs.running import run


def ledger(plan: Path, row_files: dict[str, dict[str, list[str]]], table: Path, text: Path) -> None:
    """Compares the records of the finished rows with the plan."""
    planned = tables.read_csv(plan).to_dict("records")
    finished = {}
    for rule, files_by_model in row_files.items():
        for model, files in files_by_model.items():
            finished[model, rule] = []
            for file in files:
                finished[model, rule] += read_finished_rows(Path(file))
    lines = ledger_lines(planned, finished)
    tables.write_csv(table, lines)
    write_text(text, ledger_text(lines))


if __name__ == "__main__":
    run(
        ledger,
        snakemake.log[0],
        plan=Path(snakemake.input.plan),
        row_files=snakemake.params.rows,
        table=Path(snakemake.output.ledger),
        text=Path(snakemake.output.text),
    )
