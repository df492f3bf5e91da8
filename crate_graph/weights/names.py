"""From what a user names to a restoration network: shipped weights, a checkpoint, or an exported file."""

from __future__ import annotations

import difflib
from pathlib import Path

from crate_graph.checkpoint.described import DESCRIPTION, WEIGHTS
from crate_graph.checkpoint.manifest import MANIFEST
from crate_graph.errors import UserError
from crate_graph.export.restorer import Restorer, read_restorer, rebuild
from crate_graph.export.restorer_safetensors import load_restorer_file, read_tensors
from crate_graph.paths import expanded

SHIPPED = Path(__file__).resolve().parent
CARD = "README.md"


def list_weights() -> list[str]:
    """Names of the weights that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}"))


def shipped_weights(name: str) -> Path | None:
    """The folder of the weights that ship under that name, where there are such."""
    return SHIPPED / name if name in list_weights() else None


def load_restorer(name_or_path: str | Path) -> Restorer:
    """The restoration network of that name, or at that path, in eval mode on the CPU.

    Args:
        name_or_path: shipped weights; a checkpoint or a run folder; a safetensors file that `crate-graph export` wrote;
            a folder like those of the shipped weights.

    Raises:
        UserError: none of these (naming the nearest name), damaged, or of another task.
    """
    path = expanded(name_or_path)
    if (shipped := shipped_weights(str(name_or_path))) is not None:
        return _load_folder(shipped)
    if path.name == WEIGHTS and (path.parent / DESCRIPTION).is_file():
        path = path.parent
    if (path / DESCRIPTION).is_file():
        return _load_folder(path)
    if (path / MANIFEST).is_file() or path.is_dir():
        return read_restorer(path)
    if path.is_file():
        return load_restorer_file(path)
    raise UserError(f"{name_or_path}: neither shipped weights nor a checkpoint{_remedy(str(name_or_path))}")


def _load_folder(folder: Path) -> Restorer:
    try:
        described = (folder / DESCRIPTION).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / DESCRIPTION}: cannot be read ({error}); install or export it again") from None
    _, weights = read_tensors(folder / WEIGHTS)
    return rebuild(described, weights, folder)


def _remedy(name: str) -> str:
    names = list_weights()
    if near := difflib.get_close_matches(name, names, n=3):
        return f"; did you mean {', '.join(near)}?"
    listed = " or shipped weights (crate-graph restore --list)" if names else ""
    return (
        f", and no file or folder has that name; name a run folder, a checkpoint, a file that crate-graph export "
        f"--format safetensors wrote{listed}"
    )
