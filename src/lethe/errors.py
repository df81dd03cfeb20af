"""The errors that lethe raises on purpose."""

from collections.abc import Sequence

# Characters of another library's message that one of ours repeats.
_LONGEST = 400


class LetheError(Exception):
    """Something the user can put right: names the file, task or key, the value seen, what to do.

    Command-line entry points print the message without a traceback.
    """


class ExperimentError(LetheError):
    """An experiment file or its task table is wrong; the message lists every problem at once."""

    def __init__(self, where: str, problems: list[str]):
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{where}: {len(problems)} problem(s), nothing was started\n{lines}")


class RowError(LetheError):
    """A row file is truncated, edited by hand or of another experiment; the message names it."""


class RowsError(RowError):
    """Some of several row files cannot be used; the message lists every problem at once."""

    def __init__(
        self,
        subject: str,
        problems: Sequence[str],
        *,
        files: str,
        outcome: str = "gathered",
        hint: str = "",
    ):
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(
            f"{subject}: {len(problems)} problem(s) with {files}, nothing was {outcome}\n{lines}\n"
            f"move these files away and run again to measure them{hint}"
        )


def error_message(error: LetheError) -> str:
    """The text of an error that is shown to a user.

    It is one line, except for an experiment with several problems, which has one line per problem.
    """
    lines = str(error).splitlines() or [""]
    if len(lines) == 2:
        lines = [f"{lines[0]}: {lines[1].strip().removeprefix('- ')}"]
    return "error: " + "\n".join(lines)


def one_line(error: BaseException) -> str:
    """The kind and message of another library's error as one line of bounded length."""
    message = " ".join(str(error).split())
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    kind = type(error).__name__
    return f"{kind}: {message}" if message else kind
