from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from lethe import tables
from lethe.cost import ledger as accounts
from lethe.files import whole
from lethe.jobs.running import run
from lethe.matrix import rows

RULES = ("score_base", "measure_row", "repeat_row", "replay_run")


def ledger(inputs: Mapping, outputs: Mapping) -> None:
    """Sets what the finished rows say beside what the plan said."""
    done: dict = {}
    planned = pd.read_csv(inputs["plan"], keep_default_na=False).to_dict("records")
    results = Path(inputs["plan"]).parent
    for rule in RULES:
        for path in map(Path, inputs[rule]):
            model = path.relative_to(results).parts[0]
            done.setdefault((model, rule), []).append((rows.read(path), path.stat().st_size))
    lines = accounts.ledger(planned, done)
    tables.write_csv(outputs["ledger"], lines)
    with whole(Path(outputs["text"])) as part:
        part.write_text(accounts.ledger_text(lines), "utf-8")


if __name__ == "__main__":
    run(ledger, snakemake.log[0], inputs=snakemake.input, outputs=snakemake.output)
