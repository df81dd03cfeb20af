"""Recognises a hub that does not answer, from the error of a download."""

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
