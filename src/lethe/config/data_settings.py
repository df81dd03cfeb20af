"""Settings of where examples come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lethe.config.settings import SHA256, Fraction, Name, Settings


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

    Give `prompt` and `answer` for tasks, or `text` for plain upstream text; or the `format` of a
    data set that the paper uses.
    """

    format: Literal["fields", "messages", "dolly", "mmlu", "bbh"] = Field(
        "fields", description="By the templates below, or as the paper reads it (docs/paper.md)."
    )
    prompt: str = "{prompt}"
    answer: str = "{answer}"
    text: str | None = Field(
        None, description="If given, records are plain text; so are those of the field text only."
    )
    longer_than: Annotated[int, Field(ge=0)] = Field(
        0, description="Characters; plain texts that have no more are left out."
    )
    first: PositiveInt | None = Field(None, description="Only so many examples: the first ones.")
    sample: PositiveInt | None = Field(
        None, description="Only so many examples, drawn in one pass: for files too large to keep."
    )

    @model_validator(mode="after")
    def _answer_names_a_field(self):
        for key in ("answer", "text"):
            value = getattr(self, key)
            if value is not None and "{" not in value:
                raise ValueError(f"{key} names no field of the record, like '{{response}}'")
        return self

    @model_validator(mode="after")
    def _format_has_what_it_needs(self):
        needed = {"bbh": ("files", "prompts"), "mmlu": ("hub or saved", "shots_split")}
        kinds, key = needed.get(self.format, ("", ""))
        if key and getattr(self, key, None) is None:
            raise ValueError(f"format {self.format} is for kind {kinds} and needs the key {key}")
        if self.format != "fields" and self.text is not None:
            raise ValueError(f"format {self.format} makes pairs: remove text")
        if self.first is not None and self.sample is not None:
            raise ValueError("first and sample: give one of them")
        return self


class DatasetSource(Fields):
    """A dataset on the Hugging Face hub, or one saved with `Dataset.save_to_disk`."""

    kind: Literal["hub", "saved"]
    path: str = Field(description="Dataset id on the hub, or the folder of the saved dataset.")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = "train"
    eval_split: str | None = Field(
        None, description="Split that tasks are evaluated on; none: examples left out of training."
    )
    shots_split: str | None = Field(
        None, description="Split whose first five records stand solved before each; format mmlu."
    )
    revision: str | None = Field(None, description="Commit of the dataset; pin it.")
    by: str | None = Field(None, description="Field that `where` must equal; none: all records.")
    by_until: str | None = Field(
        None, description="Compare `by` only up to this text, like '.' in science.evidence."
    )
    files: str | None = Field(
        None,
        description="Read these files of the hub's repository as they are; may hold {where} and *.",
    )
    eval_files: str | None = Field(None, description="The files that tasks are evaluated on.")

    @model_validator(mode="after")
    def _files_are_the_hubs(self):
        if self.files is None and self.eval_files is not None:
            raise ValueError("eval_files goes with files: give both")
        others = (self.by, self.eval_split, self.shots_split)
        if self.files is not None and (self.kind != "hub" or any(others)):
            raise ValueError("files stands alone: kind hub, without by, eval_split, shots_split")
        return self

    def evaluation(self) -> "DatasetSource | None":
        """Where a task's evaluation examples come from; None if training leaves some out."""
        if self.eval_files is not None:
            return self.model_copy(update={"files": self.eval_files})
        if self.eval_split is not None:
            return self.model_copy(update={"split": self.eval_split})
        return None


class FileSource(Fields):
    """Local .jsonl, .json, .csv, .parquet or .txt files, also .gz or .zst.

    `where` is a file's path under `folder`, or a pattern with `*`.
    """

    kind: Literal["files"]
    folder: str
    prompts: str | None = Field(
        None, description="Folder of files <task>.txt that stand before questions; format bbh."
    )

    def reads(self, where: str, root: Path = Path()) -> list[str]:
        """The files that are read for `where`, relative to `root`: a pattern if none matches it."""
        base = root / self.folder
        matches = sorted(base.glob(where)) if "*" in where else []
        found = [f"{self.folder}/{path.relative_to(base)}" for path in matches]
        found = found or [f"{self.folder}/{where}"]
        return found if self.prompts is None else [*found, self.prompt_file(where)]

    def prompt_file(self, where: str) -> str:
        """The file that stands before a task's questions."""
        return f"{self.prompts}/{Path(where).stem}.txt"


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
    uneven: bool = Field(False, description="A domain with too few examples gives all that it has.")
    words: PositiveInt = Field(48, description="Words of one chunk of plain text.")
    corpus_words: PositiveInt = Field(
        80_000, description="Words a domain gives to pretraining; its examples are among them."
    )


class TaskExamples(Settings):
    """How many examples of each task are trained on and evaluated on; never the same ones."""

    train: PositiveInt = 400
    eval: PositiveInt = 50
