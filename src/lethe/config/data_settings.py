"""Settings of the sources of examples."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from lethe.config.settings import (
    SHA256,
    Fraction,
    Location,
    Name,
    NonNegativeInt,
    PositiveInt,
    Settings,
    Version,
)
from lethe.files import matching_paths


class BigBenchSource(Settings):
    """BIG-bench tasks from the PyPI source package; `where` is the path of a task in it."""

    kind: Literal["bigbench"] = Field(description="BIG-bench.")
    version: Version = Field("1.0.0", description="Version of the package: digits and dots.")
    sha256: SHA256 = Field(
        "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        description="Checksum of the downloaded package.",
    )
    upstream_as: Literal["text", "pairs"] = Field(
        "text",
        description="Form of upstream examples: prompt and answer joined to plain text, or pairs.",
    )
    shots: NonNegativeInt = Field(
        0,
        description="Solved examples before each prompt. They are the task's first examples, "
        "which are then left out.",
    )


# A field of a record in a template. Its name begins with a letter, a digit or _. It holds no double
# quote, so that JSON in a prompt stays as it is, and neither brace nor line break.
FIELD = re.compile(r'\{(\w[^{}"\n]*)\}')


class Fields(Settings):
    """How a record becomes an example: `{field}` is replaced by that field of the record.

    Give `prompt` and `answer` for tasks, `text` for plain upstream text, or the `format` of a
    data set that the paper uses. Values are text or numbers, which are written as JSON writes
    them; null is empty, and an object {"text": ...} is read as its text. Any other value is
    refused. `{field.key}` and `{field.0}` name a part of an object or list, such as the first of
    several accepted answers.
    """

    format: Literal["fields", "chat", "messages", "dolly", "mmlu", "bbh"] = Field(
        "fields",
        description="fields: by the templates below. chat: chats with all their turns, in any form "
        "that trainers read (docs/how-to/own-tasks.md). The others: as the paper reads the data "
        "set of this name (docs/how-to/paper.md).",
    )
    prompt: str = Field("{prompt}", description="Template of the prompt.")
    answer: str = Field("{answer}", description="Template of the answer.")
    text: str | None = Field(
        None,
        description="Template of plain text, in place of prompt and answer. Records whose only "
        "field is `text` are plain text without it.",
    )
    longer_than: NonNegativeInt = Field(
        0, description="Characters. Plain texts that are not longer are left out."
    )
    first: PositiveInt | None = Field(None, description="Read this many examples, the first ones.")
    sample: PositiveInt | None = Field(
        None,
        description="Draw this many examples in one pass, for files too large for the memory.",
    )

    @model_validator(mode="after")
    def _answer_names_a_field(self):
        for key in ("answer", "text"):
            template = getattr(self, key)
            if template is not None and not FIELD.search(template):
                raise ValueError(f"{key} names no field of the record, like '{{response}}'")
        return self

    @model_validator(mode="after")
    def _format_has_its_keys(self):
        requirements = {"bbh": ("files", "prompts"), "mmlu": ("hub or saved", "shots_split")}
        if self.format in requirements:
            kind, key = requirements[self.format]
            if getattr(self, key, None) is None:
                raise ValueError(f"format {self.format} is for kind {kind} and needs the key {key}")
        if self.format != "fields" and self.text is not None:
            raise ValueError(f"format {self.format} reads no template: remove text")
        if self.first is not None and self.sample is not None:
            raise ValueError("first and sample exclude each other; give one of them")
        return self


class DatasetSource(Fields):
    """A dataset on the Hugging Face hub, or one saved with `Dataset.save_to_disk`."""

    kind: Literal["hub", "saved"] = Field(description="Where the dataset is.")
    path: Location = Field(description="Dataset id on the hub, or the folder of the saved dataset.")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = Field("train", description="Split that examples are read from.")
    eval_split: str | None = Field(
        None,
        description="Split that tasks are evaluated on. null: some training examples are held "
        "out for evaluation.",
    )
    shots_split: str | None = Field(
        None,
        description="Split whose first five records come solved before each prompt (format mmlu).",
    )
    revision: str | None = Field(None, description="Commit of the dataset. Pin it.")
    by: str | None = Field(
        None, description="Field whose value must equal `where`. null: all records."
    )
    by_until: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None,
        description="Compare only the part of `by` before this text, like '.' in science.evidence.",
    )
    files: str | None = Field(
        None,
        description="Files of the hub's repository to read directly; may hold {where} and *.",
    )
    eval_files: str | None = Field(None, description="Files that tasks are evaluated on.")

    @model_validator(mode="after")
    def _files_are_on_the_hub(self):
        if self.files is None and self.eval_files is not None:
            raise ValueError("eval_files goes with files: give both")
        if self.files is not None:
            selection = (self.by, self.eval_split, self.shots_split)
            if self.kind != "hub" or any(selection):
                raise ValueError("files needs kind hub and excludes by, eval_split, shots_split")
        return self

    def saved_files(self) -> list[str]:
        """The files of a saved dataset; none if its folder is missing."""
        return sorted(str(path) for path in Path(self.path).rglob("*") if path.is_file())

    def evaluation(self) -> "DatasetSource | None":
        """Source of a task's evaluation examples; None if training examples are held out."""
        if self.eval_files is not None:
            return self.model_copy(update={"files": self.eval_files})
        if self.eval_split is not None:
            return self.model_copy(update={"split": self.eval_split})
        return None


class FileSource(Fields):
    """Local .jsonl, .json, .csv, .parquet or .txt files, which may end in .gz or .zst as well.

    `where` is the path of a file under `folder`, or a pattern with `*`.
    """

    kind: Literal["files"] = Field(description="Local files.")
    folder: Location = Field(description="Folder of the files.")
    prompts: Location | None = Field(
        None,
        description="Folder of files <task>.txt with solved examples that come before each "
        "question (format bbh).",
    )

    def reads(self, where: str, root: Path = Path()) -> list[str]:
        """Files that are read for `where`, relative to `root`.

        A pattern that matches no file is returned as it is.
        """
        base = root / self.folder
        paths = [f"{self.folder}/{where}"]
        if "*" in where:
            try:
                matches = matching_paths(base, where)
            except (OSError, ValueError, NotImplementedError):
                # No pattern, or a name that is too long; a check finds that there is no such file.
                matches = []
            if matches:
                paths = [f"{self.folder}/{path.relative_to(base)}" for path in matches]
        if self.prompts is not None:
            paths.append(self.prompt_file(where))
        return paths

    def prompt_file(self, where: str) -> str:
        """File with the solved examples that come before a task's questions."""
        return f"{self.prompts}/{Path(where).stem}.txt"


class StdlibSource(Settings):
    """Python's standard library, one document per module; `where` is a package or `all`."""

    kind: Literal["stdlib"] = Field(description="Python's standard library.")


Source = Annotated[
    BigBenchSource | DatasetSource | FileSource | StdlibSource, Field(discriminator="kind")
]


def split_source(source: str) -> tuple[str, str]:
    """Splits `<source key>:<where>` into its two parts; `where` may be empty."""
    key, _, where = source.partition(":")
    return key, where


class Upstream(Settings):
    """The upstream examples whose forgetting is measured, drawn evenly from the domains."""

    domains: dict[Name, str] = Field(
        {}, description="Source of each domain, written <source key>:<where>."
    )
    examples: PositiveInt | None = Field(
        None, description="N, the number of examples over all domains."
    )
    pool: Location | None = Field(
        None,
        description="A finished pool (`lethe pool`) in place of domains and examples; it is used "
        "as it is.",
        # Parameters of runs without it stay as they were.
        exclude_if=lambda path: path is None,
    )
    heldout: Fraction = Field(
        0.25, description="Share of the examples that is never replayed; replay is judged on it."
    )
    uneven: bool = Field(
        False, description="Allow a domain with too few examples to give only those it has."
    )
    words: PositiveInt = Field(48, description="Words per chunk of plain text.")
    corpus_words: PositiveInt = Field(
        80_000,
        description="Words per domain for pretraining. Upstream examples are drawn from the same "
        "documents.",
    )

    @model_validator(mode="after")
    def _drawn_or_finished(self):
        if self.pool is None and not (self.domains and self.examples):
            raise ValueError(
                "give upstream.domains and upstream.examples, or upstream.pool (a finished pool)"
            )
        if self.pool is not None and (self.domains or self.examples):
            raise ValueError("pool takes the place of domains and examples: give one of both")
        return self


class TaskExamples(Settings):
    """Numbers of examples per task for training and for evaluation, which do not overlap."""

    train: PositiveInt = Field(400, description="Most training examples per task.")
    eval: PositiveInt = Field(50, description="Most evaluation examples per task.")


def even_sizes(count: int, parts: int) -> list[int]:
    """Sizes of the parts of a count; the first ones are larger by 1 if it does not divide."""
    return [count // parts + (number < count % parts) for number in range(parts)]
