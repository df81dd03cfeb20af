"""The hub: the commit of a model there, and the errors of a hub that does not answer."""

import logging
import re

_log = logging.getLogger("lethe.engine")
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


def commit_of(path: str, revision: str | None) -> str | None:
    """The commit that a revision of a model on the hub names today.

    Parameters
    ----------
    revision
        Branch, tag or commit; None: the default branch.

    Returns
    -------
    The commit; None if the hub does not answer and the model is not in the local cache.
    """
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    # Imported here because it takes a while.
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        file = cached_file(path, "config.json", revision=revision)
    except Exception:  # Loading the model reports the same problem in full.
        file = None
    commit = extract_commit_hash(file, None)
    if commit is None:
        _log.warning(
            "model %s: its commit could not be looked up, so that it is not pinned; set "
            "models.<name>.revision to a commit",
            path,
        )
    return commit
