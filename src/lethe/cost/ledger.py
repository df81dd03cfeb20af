"""What an experiment did cost, beside what was estimated."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lethe.matrix.rows import Row
from lethe.tables import as_text


def actual(row: Row) -> dict[str, float]:
    """What a row's job did, from its metadata: tokens trained on, and seconds.

    A further measurement of the same weights trains nothing, a copy of a row does nothing at all.
    """
    about = row.about
    if about.get("copied"):
        return {"training_tokens": 0.0, "seconds": 0.0}
    if about.get("measurement"):
        return {"training_tokens": 0.0, "seconds": about.get("seconds", float("nan"))}
    trained = about.get("training_tokens_per_second", 0.0) * about.get("training_seconds", 0.0)
    return {"training_tokens": trained, "seconds": about.get("seconds", float("nan"))}


def ledger(
    planned: Iterable[Mapping[str, Any]],
    done: Mapping[tuple[str, str], Sequence[tuple[Row, int]]],
) -> list[dict[str, Any]]:
    """Lines of ledger.csv: the plan's estimate beside what the finished rows say.

    Parameters
    ----------
    planned
        Lines of plan.csv.
    done
        (model, rule) -> its rows, each with the bytes of its file. Rules that leave no rows
        (pretraining, directions) have no line.
    """
    found = []
    for line in planned:
        rows = done.get((line["model"], line["rule"]))
        if not rows:
            continue
        seen = [actual(row) for row, _ in rows]
        seconds = sum(one["seconds"] for one in seen)
        found.append(
            {
                **{key: line[key] for key in ("model", "rule")},
                "jobs_planned": line["jobs"],
                "jobs": sum(not row.about.get("measurement") for row, _ in rows),
                "seconds_planned": line["seconds"],
                "seconds": seconds,
                "ratio": seconds / line["seconds"] if line["seconds"] else float("nan"),
                "training_tokens_planned": line["training_tokens"],
                "training_tokens": round(sum(one["training_tokens"] for one in seen)),
                "disk_mb_planned": line["disk_mb"],
                "disk_mb": sum(size for _, size in rows) / 1e6,
            }
        )
    return found


def ledger_text(found: Sequence[Mapping[str, Any]]) -> str:
    """ledger.csv as a table to read."""
    count, size = "{:,}".format, "{:,.1f}".format
    columns = {"model": str, "rule": str, "jobs_planned": count, "jobs": count}
    columns |= {"seconds_planned": size, "seconds": size, "ratio": "{:.2f}".format}
    columns |= {"training_tokens_planned": count, "training_tokens": count}
    return as_text(found, columns | {"disk_mb_planned": size, "disk_mb": size}) + "\n"
