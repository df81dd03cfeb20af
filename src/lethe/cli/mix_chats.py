"""`lethe mix`: training data that replays what the model should not forget."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lethe.cli.options import AsJson, PoolFile
from lethe.cli.output import print_json
from lethe.errors import LetheError

if TYPE_CHECKING:
    from lethe.data.examples import Example, UpstreamFile
    from lethe.replay.mixture_files import Mixture, MixtureDose


class Trainer(StrEnum):
    """Trainers with a snippet; all: every one that can read the rows."""

    TRL = "trl"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llama-factory"
    MS_SWIFT = "ms-swift"
    MEGATRON_BRIDGE = "megatron-bridge"
    JSONL = "jsonl"
    ALL = "all"


def make_mixture_files(
    chats: Annotated[Path, typer.Argument(metavar="CHATS.jsonl", help="Data of your fine-tune.")],
    pool: PoolFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write into.")
    ] = Path("mixed"),
    lost: Annotated[
        Path | None,
        typer.Option("--lost", metavar="FILE", help="Measured forgetting (lethe compare)."),
    ] = None,
    predictor: Annotated[
        Path | None,
        typer.Option("--predictor", metavar="FILE", help="Predictor (lethe learn); with --probes."),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option("--probes", metavar="FILE", help="Losses after a fine-tune (lethe score)."),
    ] = None,
    sibling: Annotated[
        Path | None,
        typer.Option(
            "--sibling",
            metavar="FILE",
            help="The new task's losses on the sibling of lethe learn --sibling (lethe compare).",
        ),
    ] = None,
    ratio: Annotated[
        float, typer.Option("--ratio", help="Replayed examples per new example.")
    ] = 0.1,
    trainer: Annotated[
        Trainer, typer.Option("--for", help="Trainer whose settings are written.")
    ] = Trainer.TRL,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Counts the dose in tokens of this model, not in words."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Mix your chats with examples of the pool, as rows that trainers read.

    Without --lost and --predictor the draw is random, with the same number of examples from every
    domain. With them, examples that are forgotten more are drawn more often. Held-out examples are
    never used. With --predictor, the predicted mean forgetting of the fine-tune and of every domain
    is printed first, with 90 percent intervals. Writes new.jsonl, train_with_replay.jsonl, the
    replayed rows by themselves, and the trainer's settings. The same files and seed give the same
    rows.

    Examples::

      lethe mix chats.jsonl --pool pool.parquet --ratio 0.1 --for trl -o mixed/
      lethe mix chats.jsonl --pool pool.parquet --lost lost.parquet --for axolotl
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.data.examples import read_upstream
    from lethe.data.training_rows import read_new_data
    from lethe.files import write_text
    from lethe.integrations.trainer_snippets import MixtureFiles, check_form
    from lethe.matrix.rows import read_row
    from lethe.replay.mixture_files import (
        MOST_RATIO,
        make_mixture,
        measured_forgetting,
        write_mixture,
        write_replayed,
    )

    if not 0 < ratio <= MOST_RATIO:
        raise typer.BadParameter(f"--ratio is above 0 and at most {MOST_RATIO}")
    _check_sources(lost, predictor=predictor, probes=probes, sibling=sibling)
    if output.exists() and any(output.iterdir()):
        raise LetheError(f"{output}: is not empty, and nothing in it is overwritten; give another")
    new = read_new_data(chats)
    if trainer is not Trainer.ALL:
        # Before anything is written, so that the corrected command finds an empty folder.
        check_form(trainer.value, new.form)
    upstream = read_upstream(pool)
    measure = "measured_forgetting" if lost else "predicted_forgetting"
    forgetting = None
    prediction = None
    if lost is not None:
        forgetting = measured_forgetting(read_row(lost), upstream, lost)
    elif predictor is not None and probes is not None:
        prediction = _predict(upstream, predictor=predictor, probes=probes, sibling=sibling)
        forgetting = prediction.by_example
    mixture = make_mixture(
        new, upstream, ratio=ratio, seed=seed, forgetting=forgetting, measure=measure
    )
    dose = _dose(mixture, model, trainer)
    rows = write_mixture(output, mixture)
    write_replayed(output / "replay.parquet", mixture)
    files = MixtureFiles(folder=output, form=mixture.form, rows=rows, tools=mixture.has_tools)
    snippets = _snippets(trainer, files)
    for name, text in snippets.items():
        write_text(output / name, text)
    summary = {
        "folder": str(output),
        "form": mixture.form,
        "read": new.summary,
        "rows": rows,
        "left_out_of_pool": mixture.left_out,
        "new_heldout": mixture.new_heldout,
        "dose": {
            "unit": dose.unit,
            "new": dose.new,
            "replayed": dose.replayed,
            "replayed_per_new": dose.share,
        },
        "settings": sorted(snippets),
        "examples": str(output / "replay.parquet"),
        "different_examples": mixture.different_examples,
        "replayed_rows": len(mixture.replayed),
    }
    if prediction is not None:
        summary["predicted"] = prediction.facts
    if as_json:
        print_json(summary)
        return
    if prediction is not None:
        print(prediction.text)
    print("\n".join([f"{chats}: {new.summary}", *mixture.remarks(chats, pool)]))
    _print_summary(summary)
    for name, text in snippets.items():
        print(f"\n{output / name}:\n{text.rstrip()}")


def _print_summary(summary: Mapping[str, Any]) -> None:
    """Prints what was written, and the dose."""
    for name, count in summary["rows"].items():
        print(f"{Path(summary['folder']) / name}: {count} rows")
    print(
        f"{summary['examples']}: {summary['different_examples']} examples, for "
        "lethe.integrations.Rehearsal"
    )
    dose = summary["dose"]
    print(
        f"Dose: {dose['replayed']} replayed loss {dose['unit']} over {dose['new']} new ones, "
        f"{dose['replayed_per_new']:.3f} per new one"
    )


def _check_sources(
    lost: Path | None, *, predictor: Path | None, probes: Path | None, sibling: Path | None
) -> None:
    if lost is not None and predictor is not None:
        raise typer.BadParameter("give --lost or --predictor, not both")
    if (predictor is None) != (probes is None):
        raise typer.BadParameter("--predictor and --probes go together")
    if sibling is not None and predictor is None:
        raise typer.BadParameter("--sibling needs --predictor and --probes")


@dataclass(frozen=True)
class _PredictedForgetting:
    """Predicted forgetting of a fine-tune: nats by example id, its means in words and for JSON."""

    by_example: dict[str, float]
    text: str
    facts: dict[str, Any]


def _predict(
    upstream: "UpstreamFile", *, predictor: Path, probes: Path, sibling: Path | None
) -> _PredictedForgetting:
    from lethe.completion.predictor import Predictor
    from lethe.matrix.rows import read_row
    from lethe.replay.mixture_files import by_example, predict_from_row

    fitted = Predictor.load(predictor)
    prediction = predict_from_row(
        fitted,
        read_row(probes),
        upstream,
        probes,
        sibling=read_row(sibling) if sibling else None,
    )
    facts = {
        "mean": asdict(prediction.mean),
        "domains": {name: asdict(mean) for name, mean in prediction.domains.items()},
        "top_tenth": fitted.top_tenth,
    }
    return _PredictedForgetting(
        by_example=by_example(fitted, prediction),
        text=prediction.summary(fitted.top_tenth),
        facts=facts,
    )


def _dose(mixture: "Mixture", model: str | None, trainer: Trainer) -> "MixtureDose":
    from lethe.replay.mixture_files import dose_of, loss_words

    # The settings of axolotl read plain texts as completions, not as questions with answers.
    plain_passages = trainer is Trainer.AXOLOTL
    if model is None:
        return dose_of(mixture, loss_words, "words", plain_passages=plain_passages)
    count = _loss_tokens(model, mixture.form)
    return dose_of(mixture, count, "tokens", plain_passages=plain_passages)


def _loss_tokens(model: str, form: str) -> "Callable[[Example], int]":
    """Counts the loss tokens of an example as the model's tokenizer reads it."""
    from lethe.data.tokens import tokenise
    from lethe.engine.pretrained import Pretrained

    files = Pretrained(
        name=f"--model {model}", path=model, advice="Give the folder or hub id of a tokenizer"
    )
    tokenizer = files.load_tokenizer()
    if form != "messages":
        # Trainers read such rows without a chat template.
        tokenizer.chat_template = None

    def count(example: "Example") -> int:
        counted = tokenise(tokenizer, [example], 2**31, origins=["a row of the mixture"])
        return counted.examples[0].scored

    return count


def _snippets(trainer: Trainer, files: Any) -> dict[str, str]:
    from lethe.integrations.trainer_snippets import TRAINERS, can_read, snippet_files

    if trainer is not Trainer.ALL:
        return snippet_files(trainer.value, files)
    snippets: dict[str, str] = {}
    for name in TRAINERS:
        if can_read(name, files.form):
            snippets |= snippet_files(name, files)
    return snippets
