"""When two cards, the content of model.json, describe the same model."""

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)
# A folder is identified by the hashes of its files, a model on the hub by its commit.
_IDENTITY = {"path", "revision", "commit", "weights", "files"}


def same_model(card: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """True if two cards describe the same weights, read in the same way.

    Equal cards do. Otherwise the models of two folders are the same if the hashes of their files
    are equal, wherever the folders are. A model on the hub is the same only if both cards name its
    commit. Chat template, attention and permission to run code must be equal too.

    Parameters
    ----------
    card
        The card of today.
    measured
        The card of earlier measurements. It may lack the hashes of `files`, which cards of earlier
        versions do not hold; these are then not compared.
    """
    if card == measured:
        return True
    defaults = {"trust_remote_code": False}
    settings = {**defaults, **_settings(card)}
    if settings != {**defaults, **_settings(measured)}:
        return False
    if card.get("weights") or measured.get("weights"):
        return _same_files(card, measured)
    if card.get("commit") is None:
        return False
    return all(card.get(key) == measured.get(key) for key in ("path", "commit"))


def _settings(card: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a card that say how the model is read; absent ones and null are the same."""
    return {key: card[key] for key in card if key not in _IDENTITY and card[key] is not None}


def _same_files(card: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    if card.get("weights") != measured.get("weights"):
        return False
    if "files" in measured:
        return card.get("files") == measured["files"]
    if "files" in card:
        _log.info(
            "model %s: its base losses were measured by an earlier version of lethe, whose card "
            "holds no hashes of tokenizer and settings; they are used",
            card.get("path"),
        )
    return True
