"""hf://datasets/USER/REPOSITORY[@REVISION]/PATH: huggingface_hub knows URL and token, and the file comes by http."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crate_graph.data.remote.answer import Refused
from crate_graph.data.remote.http import Request
from crate_graph.errors import UserError

KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}


class HubPath(NamedTuple):
    """`kind` is dataset, space or model; without a revision it is the main branch."""

    kind: str
    repository: str
    revision: str | None
    path: str


def parse_hub(address: str) -> HubPath:
    """Raises Refused: no user, or no repository."""
    words = address.partition("://")[2].strip("/").split("/")
    kind = KINDS.get(words[0], "model")
    if words[0] in KINDS:
        del words[0]
    if len(words) < 2 or not all(words[:2]):
        raise Refused("not an address on the hub; write hf://datasets/USER/REPOSITORY/FOLDER")
    name, _, revision = words[1].partition("@")
    return HubPath(kind, f"{words[0]}/{name}", revision.replace("%2F", "/") or None, "/".join(words[2:]))


def hub_request(address: str) -> Request:
    """Raises Refused: no address on the hub. UserError: huggingface_hub is not installed."""
    hub, where = _library(), parse_hub(address)
    try:
        url = hub.hf_hub_url(where.repository, where.path, repo_type=where.kind, revision=where.revision)
        headers = hub.utils.build_hf_headers()
    except ValueError as error:  # the name of a repository that cannot be one
        raise Refused(f"{str(error).splitlines()[0]}") from None
    return Request(url, headers, "the token (hf auth login) and that the repository is open to you")


def hub_names(root: str) -> Iterator[str]:
    """Names of all files below `root`. Raises Refused."""
    hub, where = _library(), parse_hub(root)
    prefix = f"{where.path}/" if where.path else ""
    try:
        found = hub.HfApi().list_repo_tree(
            where.repository,
            where.path or None,
            recursive=True,
            revision=where.revision,
            repo_type=where.kind,
        )
        yield from (item.path.removeprefix(prefix) for item in found if hasattr(item, "size"))
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused(
            f"the repository cannot be listed ({type(error).__name__}); name the shards in dataset.yaml with braces, "
            f"or check the address and the token (hf auth login)"
        ) from None


def _library():
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("hf:// needs huggingface_hub; install it with: pip install 'crate-graph[hf]'") from None
    return huggingface_hub
