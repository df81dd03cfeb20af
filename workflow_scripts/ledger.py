from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lethe import tables
from lethe.cost.ledger import FinishedRow, ledger_lines, ledger_text
from lethe.files import atomic_write
from lethe.jobs.running import run
from lethe.matrix import rows

RULES = ("score_base", "measure_row", "repeat_row", "replay_run")


def ledger(inputs: Mapping, outputs: Mapping) -> None:
    """Compares the records of the finished rows with the plan."""
    finished: dict = {}
    planned = pd.read_csv(inputs["plan"], keep_default_na=False).to_dict("records")
    results = Path(inputs["plan"]).parent
    for rule in RULES:
        for path in map(Path, inputs[rule]):
            model = path.relative_to(results).parts[0]
            row = FinishedRow(row=rows.read(path), file_bytes=path.stat().st_size)
            finished.setdefault((model, rule), []).append(row)
    lines = ledger_lines(planned, finished)
    tables.write_csv(outputs["ledger"], lines)
    with atomic_write(Path(outputs["text"])) as part:
        part.write_text(ledger_text(lines), "utf-8")


if __name__ == "__main__":
    run(ledger, snakemake.log[0], inputs=snakemake.input, outputs=snakemake.output)
