"""Addresses of files that lie elsewhere: a root, and the name of a file below it."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from crate_graph.errors import UserError
from crate_graph.redaction import MARK, redact

SCHEMES = ("http", "https", "s3", "hf")
PIPE = "pipe:"
HUB_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}
PLACE = "{}"  # stands for the name of the file in a command

# Parts of a query that sign a request: the next one is signed otherwise and is still for the same file.
_SIGNATURE = re.compile(
    r"(x-amz-.*|x-goog-.*|sig|se|st|sp|sv|sr|spr|ske?|skt|skoid|sktid|skv|sks|signature|expires|policy|key-pair-id"
    r"|awsaccesskeyid|googleaccessid|token|access_token)$",
    re.IGNORECASE,
)


def is_remote(text: str) -> bool:
    """Whether `text` is an address, and not a path or a name."""
    return "://" in text or text.startswith(PIPE)


def check_root(root: str) -> None:
    """Raise UserError for an address that cannot be one, before anything is asked of the network."""
    if MARK in root:
        raise UserError(
            f"{redact(root)}: credentials were left out where this was written; give the whole address again "
            f"(data.dataset=, data.root= or --data)"
        )
    if root.startswith(PIPE):
        if not root.removeprefix(PIPE).strip():
            raise UserError(
                f"the pipe has no command; write pipe:COMMAND, with {PLACE} where the name of the file goes"
            )
        return
    scheme = root.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UserError(
            f"{redact(root)}: {scheme}:// is not an address that shards can be read from; use http(s)://, s3://, hf:// "
            f"or pipe:COMMAND, or name a local folder"
        )
    try:
        parts = urlsplit(root)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    if not named:
        example = {"s3": "s3://BUCKET/PREFIX", "hf": "hf://datasets/USER/REPOSITORY/FOLDER"}
        raise UserError(f"{redact(root)}: not a URL; write {example.get(scheme, f'{scheme}://HOST/FOLDER')}")
    if scheme == "hf":
        parse_hub(root)


class HubPath(NamedTuple):
    """`kind` is dataset, space or model; without a revision it is the main branch."""

    kind: str
    repository: str
    revision: str | None
    path: str


def parse_hub(address: str) -> HubPath:
    """Of hf://datasets/USER/REPOSITORY[@REVISION]/PATH. Raises UserError: no user, or no repository."""
    words = address.partition("://")[2].strip("/").split("/")
    kind = HUB_KINDS.get(words[0], "model")
    if words[0] in HUB_KINDS:
        del words[0]
    if len(words) < 2 or not all(words[:2]):
        raise UserError(f"{redact(address)}: not an address on the hub; write hf://datasets/USER/REPOSITORY/FOLDER")
    name, _, revision = words[1].partition("@")
    return HubPath(kind, f"{words[0]}/{name}", revision.replace("%2F", "/") or None, "/".join(words[2:]))


def split_file(address: str) -> tuple[str, str]:
    """(root, name) of a file's full address."""
    parts = urlsplit(address)
    folder, _, name = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=folder)), name


def join(root: str, name: str) -> str:
    """The full address of the file `name` below `root`.

    In a command, the name takes the place of each `{}`; where there is none, `/name` is put after it.

    Raises:
        UserError: a name that could mean something else to a shell.
    """
    if root.startswith(PIPE):
        if not re.fullmatch(r"[\w./@%+=,-]+", name, re.ASCII) or name.startswith("-"):
            raise UserError(f"{name!r}: a name in a command holds only letters, digits and ._-/@%+=,; rename the file")
        return root.replace(PLACE, name) if PLACE in root else f"{root.rstrip('/')}/{name}"
    parts = urlsplit(root)
    if parts.scheme.lower() in ("http", "https"):
        name = quote(name, safe="/!$&'()*+,;=:@~")
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))


def identity(address: str) -> str:
    """The address without who asks: two addresses of one file, differently signed, are equal in this."""
    if address.startswith(PIPE):
        return address
    parts = urlsplit(address)
    kept = [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURE.match(key)]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(kept), fragment=""))


def shown(root: str, name: str) -> str:
    """The address in the words of a log or an error: without credentials, and always with the name."""
    if root.startswith(PIPE):
        return f"{PIPE}{MARK} {name}".rstrip()
    return redact(join(root, name) if name else root)
