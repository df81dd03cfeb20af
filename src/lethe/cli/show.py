"""`lethe show`: the settings, versions and data that a file was made with."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lethe.cli.options import AsJson
from lethe.cli.output import print_json


def show(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Rows, base losses, replay runs, or Z.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what made a row, base losses, a replay run or a Z.

    Prints the number of examples, the mean forgetting in nats per scored token, and the settings,
    versions and data that the file was made with. A Z is described by the rows beside it.

    Example::

      lethe show results/default/olmo-0.7m/Z.parquet
    """
    # Imported here so that `lethe --help` answers at once.
    from lethe.matrix.row_description import describe_file

    descriptions = []
    for path in files:
        descriptions += describe_file(path)
    if as_json:
        print_json([description.as_dict() for description in descriptions])
        return
    for number, description in enumerate(descriptions):
        if number:
            print()
        print(description.headline())
        print(json.dumps(description.content(), indent=1, sort_keys=True))
