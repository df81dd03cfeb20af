"""The hub: the commit of a model there, and the errors of a hub that does not answer."""

import re

from lethe.engine.model_files import ADAPTER, adapter_message
from lethe.errors import LetheError, one_line

# The libraries that huggingface_hub connects with; which of them depends on its version.
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
# Errors of huggingface_hub itself, by name because their module depends on its version.
_HUB_ERRORS = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")


def unreachable(error: BaseException | None) -> BaseException | None:
    """The broken, refused or forbidden connection that caused an error; None if it was another."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        if isinstance(error, ConnectionError | TimeoutError):
            return error
        if any(base.__name__ in _HUB_ERRORS for base in type(error).__mro__):
            return error
        # An error with a response is an answer of the hub, for example that a model is unknown.
        answered = getattr(error, "response", None) is not None
        if not answered and type(error).__module__.split(".")[0] in _CLIENTS:
            return error
        error = error.__cause__ or error.__context__
    return None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which never changes, and not a branch or a tag."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def commit_of(path: str, revision: str | None) -> str:
    """The commit that a revision of a model on the hub names today.

    Parameters
    ----------
    revision
        Branch, tag or commit; None: the default branch.

    Raises
    ------
    LetheError
        If the hub does not know the model, or does not answer and the model is not in the local
        cache. Without the commit, two jobs could load different weights.
    """
    if is_commit(revision):
        return revision
    # Imported here because it takes a while.
    from transformers.utils.hub import cached_file, extract_commit_hash

    reason = "its config.json names no commit"
    try:
        file = cached_file(path, "config.json", revision=revision)
    except Exception as error:  # Some errors of a broken connection are no OSError.
        file = None
        reason = one_line(error)
        if (broken := unreachable(error)) is not None:
            reason = f"the hub does not answer ({one_line(broken)})"
        elif _holds_adapter(path, revision):
            raise LetheError(f"model {path}: {adapter_message(None)}")
    commit = extract_commit_hash(file, None)
    if commit is None:
        raise LetheError(
            f"model {path}: its commit cannot be looked up: {reason}. If {path} is a folder, give "
            "the model source: folder and a path that exists. Else set models.<name>.revision to "
            "a commit (40 hexadecimal digits), or run again when the hub answers"
        )
    return commit


def _holds_adapter(path: str, revision: str | None) -> bool:
    from transformers.utils.hub import cached_file

    try:
        return cached_file(path, ADAPTER, revision=revision) is not None
    except Exception:  # There is no such file, or the hub stopped answering.
        return False
