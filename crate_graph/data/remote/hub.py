"""hf://datasets/USER/REPOSITORY[@REVISION]/PATH: huggingface_hub knows URL and token, and the file comes by http."""

from __future__ import annotations

from collections.abc import Iterator

from crate_graph.data.remote.address import parse_hub
from crate_graph.data.remote.answer import Refused
from crate_graph.data.remote.http import Request
from crate_graph.errors import UserError


def hub_request(address: str) -> Request:
    """Raises Refused: a name that no repository can have. UserError: huggingface_hub is not installed."""
    hub, where = _library(), parse_hub(address)
    try:
        url = hub.hf_hub_url(where.repository, where.path, repo_type=where.kind, revision=where.revision)
        headers = hub.utils.build_hf_headers()
    except ValueError as error:
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
