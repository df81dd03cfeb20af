"""Data and scripts inside an HTML page."""

import base64
import hashlib
import json
from typing import Any


def script_data(content: Any) -> str:
    """JSON that is safe inside an HTML element.

    "</script>" in a text would end the element. As an escape it stays text.

    Raises
    ------
    ValueError
        A number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def hash_script(script: str) -> str:
    """The hash by which a content security policy allows a script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"sha256-{digest}"
