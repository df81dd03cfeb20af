"""The command `lethe` with its verbs, and its exit codes."""

import inspect
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import lethe
from lethe.cli.compare_losses import compare_losses
from lethe.cli.init import write_own_data
from lethe.cli.learn_predictor import learn_predictor
from lethe.cli.mix_chats import make_mixture_files
from lethe.cli.output import print_error
from lethe.cli.pool import make_pool
from lethe.cli.run_workflow import run_workflow
from lethe.cli.score_model import measure_losses
from lethe.cli.show import show
from lethe.errors import LetheError, one_line

# Characters of a file's name in an error.
LONGEST_SHOWN = 300
# Snakemake reads the options that `lethe run` does not know.
_OPTIONS_OF_OTHERS = {"ignore_unknown_options": True}


class CommandWithDashes(typer.core.TyperCommand):
    """A command that gets the arguments from `--` on as they are, with the `--`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Reads the arguments; the parser drops the first `--`, so it gets a second one."""
        if "--" in args:
            args = [*args]
            args.insert(args.index("--"), "--")
        return super().parse_args(ctx, args)


def help_text(function: Callable[..., None]) -> str:
    """The docstring of a verb for the terminal, in which indented lines stay as they are."""
    paragraphs = []
    for paragraph in inspect.getdoc(function).split("\n\n"):
        # Click wraps the lines of every paragraph that does not begin with this mark.
        mark = "\b\n" if paragraph.startswith(" ") else ""
        paragraphs.append(mark + paragraph.replace("::", ":"))
    return "\n\n".join(paragraphs)


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    # Plain text, so that the help reads the same in a terminal, in a file and in the docs.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lethe {lethe.__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
]


def guide(version: VersionOption = False) -> None:
    """Predict, and prevent, what a language model forgets when it is fine-tuned.

    Fine-tune your own chat model and keep what it knows::

      lethe init own
      lethe pool own/own-data.yaml -o pool.parquet
      lethe score MODEL --pool pool.parquet -o base.parquet
      lethe mix own/chats/orders.jsonl --pool pool.parquet --for trl -o mixed/
      lethe compare base.parquet after.parquet --pool pool.parquet
      lethe learn MODEL --pool pool.parquet --tasks 8 -o predictor.npz

    Run the complete workflow of an experiment, and look at its files::

      lethe run experiments/smollm2.yaml --cores 2
      lethe show results/default/olmo-0.7m/rows/tense.parquet

    Every verb explains itself: lethe VERB --help.

    Exit codes: 0 is success, 1 is an error that you can put right (one line that begins with
    "error:"), and 2 is a wrong use of the command.
    """


app.callback(help=help_text(guide))(guide)
app.command("init", help=help_text(write_own_data))(write_own_data)
app.command("mix", help=help_text(make_mixture_files))(make_mixture_files)
app.command("compare", help=help_text(compare_losses))(compare_losses)
app.command("learn", help=help_text(learn_predictor))(learn_predictor)
app.command("pool", help=help_text(make_pool))(make_pool)
app.command(
    "run",
    cls=CommandWithDashes,
    help=help_text(run_workflow),
    context_settings=_OPTIONS_OF_OTHERS,
)(run_workflow)
app.command("score", help=help_text(measure_losses))(measure_losses)
app.command("show", help=help_text(show))(show)


def _file_error(error: OSError) -> LetheError:
    """The error for a file of the user that the system does not read or write."""
    if error.filename is None:
        return LetheError(f"a file cannot be read or written ({one_line(error)})")
    name = str(error.filename)
    shown = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    return LetheError(
        f"{shown}: cannot be read or written ({error.strerror}); name another file or folder, or "
        "make room or permissions for it"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, by default with the arguments of this process; returns its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    command = typer.main.get_command(app)
    try:
        command.main(args=arguments, prog_name="lethe")
    except LetheError as error:
        print_error(error)
        return 1
    except OSError as error:
        print_error(_file_error(error))
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
