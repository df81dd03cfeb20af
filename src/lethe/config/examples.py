"""Settings of where examples come from."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lethe.config.base import SHA256, Fraction, Name, Settings


class BigBenchSource(Settings):
    """BIG-bench tasks out of the PyPI source package; `where` is the task's path in it."""

    kind: Literal["bigbench"]
    version: str = "1.0.0"
    sha256: SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
    upstream_as: Literal["text", "pairs"] = Field(
        "text", description="Upstream examples: prompt and answer joined to plain text, or pairs."
    )
    shots: Annotated[int, Field(ge=0)] = Field(
        0, description="Solved examples before each prompt: the task's first, which are left out."
    )


class Fields(Settings):
    """How a record becomes an example: `{field}` stands for a field of the record.

    Give `prompt` and `answer` for tasks, or `text` for plain upstream text.
    """

    prompt: str = "{prompt}"
    answer: str = "{answer}"
    text: str | None = Field(
        None, description="If given, records are plain text; so are those of the field text only."
    )

    @model_validator(mode="after")
    def _answer_names_a_field(self):
        for key in ("answer", "text"):
            value = getattr(self, key)
            if value is not None and "{" not in value:
                raise ValueError(f"{key} names no field of the record, like '{{response}}'")
        return self


class DatasetSource(Fields):
    """A dataset on the Hugging Face hub, or one saved with `Dataset.save_to_disk`."""

    kind: Literal["hub", "saved"]
    path: str = Field(description="Dataset id on the hub, or the folder of the saved dataset.")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = "train"
    revision: str | None = Field(None, description="Commit of the dataset; pin it.")
    by: str | None = Field(None, description="Field that `where` must equal; none: all records.")


class FileSource(Fields):
    """Local .jsonl, .csv, .parquet or .txt files; `where` is the file's path under `folder`."""

    kind: Literal["files"]
    folder: str


class StdlibSource(Settings):
    """Python's own standard library, one module a document; `where` is a package or `all`."""

    kind: Literal["stdlib"]


Source = Annotated[
    BigBenchSource | DatasetSource | FileSource | StdlibSource, Field(discriminator="kind")
]


class Upstream(Settings):
    """The upstream examples whose forgetting is measured, drawn evenly from the domains."""

    domains: dict[Name, str] = Field(min_length=1, description="Domain: <source key>:<where>.")
    examples: PositiveInt = Field(description="N, over all domains.")
    heldout: Fraction = Field(0.25, description="Share that is never replayed.")
    words: PositiveInt = Field(48, description="Words of one chunk of plain text.")
    corpus_words: PositiveInt = Field(
        80_000, description="Words a domain gives to pretraining; its examples are among them."
    )


class TaskExamples(Settings):
    """How many examples of each task are trained on and evaluated on; never the same ones."""

    train: PositiveInt = 400
    eval: PositiveInt = 50
