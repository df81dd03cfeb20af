import tempfile
from pathlib import Path

from lethe.data.examples import read_examples
from lethe.jobs.running import run


def train_tokenizer(corpus: Path, folder: Path, vocabulary: int) -> None:
    """Trains the tokenizer of a model from scratch on the upstream corpus."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.engine import models
    from lethe.engine.pretraining import whole_text

    texts = [whole_text(document) for document in read_examples(corpus)]
    with tempfile.TemporaryDirectory(dir=folder) as part:
        models.train_tokenizer(texts, vocabulary).save_pretrained(part)
        for file in Path(part).iterdir():
            file.replace(folder / file.name)


if __name__ == "__main__":
    run(
        train_tokenizer,
        snakemake.log[0],
        warm_start=True,
        corpus=Path(snakemake.input.corpus),
        folder=Path(snakemake.params.folder),
        vocabulary=snakemake.params.model["pretraining"]["vocabulary"],
    )
