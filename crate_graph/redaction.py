"""What may be shown, logged or saved of a text that may hold credentials."""

from __future__ import annotations

import re
from typing import Any

MARK = "***"

_RULES = (
    # A command may hold anything. Not one: a "Broken pipe:", and what a remedy of ours calls pipe:COMMAND.
    (re.compile(r"(?<!roken )pipe:(?!\*\*\*|COMMAND[,;]).*", re.DOTALL), f"pipe:{MARK}"),
    (re.compile(r"(://)[^/\s@:]*:(?!\d+(?:/|\b))[^\s@]*@"), rf"\1{MARK}@"),  # a password with a slash in it
    (re.compile(r"(://)[^/\s'\"]*@"), rf"\1{MARK}@"),
    (re.compile(r"(://[^\s?'\"]*)\?(?!\*\*\*)[^\s'\"]+"), rf"\1?{MARK}"),
    (re.compile(r"(/[^\s?'\"]*)\?(?!\*\*\*)[^\s'\"]*=[^\s'\"]*"), rf"\1?{MARK}"),  # a URL that lost its host
)


def redact(text: str) -> str:
    """`text` without what may be a secret: user and password of a URL, its query (a signature), a `pipe:` command."""
    for pattern, shown in _RULES:
        text = pattern.sub(shown, text)
    return text


def redact_all(value: Any) -> Any:
    """Mappings and lists with every string in them redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(inner) for inner in value)
    return value
