"""Copies the tables of a finished run into the docs, as small parquet files.

A long run is not repeated for every reader, so its tables are under version control beside the page
that quotes them:

    python docs/collect_tables.py experiments/replay-study.yaml docs/lab/tables/replay-study

Every file carries what made it: the settings of the experiment, the commits and the versions of
libraries of its rows.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lethe.matrix.rows import read_rows

# Those that the experiment does not make are left out.
CSV_TABLES = (
    "rows",
    "rank_curve",
    "completion",
    "prediction_changes",
    "replay",
    "replay_comparison",
    "replay_contrasts",
    "replay_frontier",
    "replay_advice",
    "replay_advice_score",
    "sequence_steps",
    "sequence_comparison",
    "sequence_additivity",
    "sequence_prediction",
    "sequence_choice",
)


def main(experiment: Path, folder: Path) -> None:
    """Copies the tables of each model of `experiment` into `folder/<model>/`."""
    settings = yaml.safe_load(experiment.read_text("utf-8"))
    results = Path("results") / settings["experiment"]
    for model in settings["models"]:
        files = sorted((results / model).glob("replay/*/*.parquet"))
        files += sorted((results / model).glob("rows/*.parquet"))
        files += sorted((results / model).glob("sequences/**/*.parquet"))
        made_by = {"settings": settings, "files": len(files), **provenance(files)}
        target = folder / model
        target.mkdir(parents=True, exist_ok=True)
        for name in CSV_TABLES:
            source = results / model / f"{name}.csv"
            if source.exists():
                write(target / f"{name}.parquet", pd.read_csv(source), made_by)
        matrix = results / model / "Z.parquet"
        if matrix.exists():
            write(target / "Z.parquet", pq.read_table(matrix).to_pandas(), made_by)


def provenance(files: list[Path]) -> dict[str, Any]:
    """Versions that measured the rows and runs, and one digest over the contents of all."""
    versions = set()
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
        versions.add(json.dumps(read_rows(file)[0].about["versions"], sort_keys=True))
    return {
        "versions": [json.loads(text) for text in sorted(versions)],
        "sha256": digest.hexdigest(),
    }


def write(path: Path, frame: pd.DataFrame, made_by: dict[str, Any]) -> None:
    """Writes a table with what made it in the metadata key `made_by`."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    metadata = {b"made_by": json.dumps(made_by, sort_keys=True, default=str).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
