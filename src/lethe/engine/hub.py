"""What a hub that does not answer looks like."""

# huggingface_hub speaks through these; which of them depends on its version.
_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def unreachable(error: BaseException | None) -> BaseException | None:
    """The broken, refused or forbidden connection that an error came of; None if of another."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = type(error).__mro__
        if isinstance(error, ConnectionError | TimeoutError):
            return error
        if any(
            kind.__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled") for kind in kinds
        ):
            return error
        # An answer of the hub, that there is no such model say, is one.
        answered = getattr(error, "response", None) is not None
        if not answered and type(error).__module__.split(".")[0] in _CLIENTS:
            return error
        error = error.__cause__ or error.__context__
    return None
