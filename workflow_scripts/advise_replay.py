from pathlib import Path

from lethe import tables
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix.forgetting_matrix import read_matrix
from lethe.replay.advice import advise_from_tables, score_advice
from lethe.replay.predictions import read_predictions


def advise_replay(
    runs: Path,
    z: Path,
    predictions: list[Path],
    upstream: Path,
    advice: Path,
    score: Path,
    settings: dict[str, dict],
    trades: list[float],
    primary: str | None,
) -> None:
    """Writes the advised run of each task beside the truth, and the score of the advice."""
    lines = advise_from_tables(
        tables.read_csv(runs).to_dict("records"),
        read_matrix(z),
        read_predictions(predictions),
        read_upstream(upstream),
        settings=settings,
        trades=trades,
        primary=primary,
    )
    tables.write_csv(advice, lines)
    tables.write_csv(score, score_advice(lines))


if __name__ == "__main__":
    run(
        advise_replay,
        snakemake.log[0],
        runs=Path(snakemake.input.runs),
        z=Path(snakemake.input.matrix),
        predictions=[Path(path) for path in snakemake.input.predictions],
        upstream=Path(snakemake.input.upstream),
        advice=Path(snakemake.output.advice),
        score=Path(snakemake.output.score),
        settings=snakemake.params.runs,
        trades=snakemake.params.trades,
        primary=snakemake.params.primary,
    )
