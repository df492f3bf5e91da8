"""From a recipe's name or path to a checked `Recipe`, and back to text.

A recipe file may say `extends: other` (or a list of them, the later one winning): mappings are merged key by key, and
everything else, lists too, is replaced. Overrides such as `optimizer.lr=1e-3` come last and are merged the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from crate_graph.config import dialect
from crate_graph.config.explain import explain, is_recipe_key, unknown_key
from crate_graph.config.schema import Recipe
from crate_graph.errors import UserError
from crate_graph.redaction import redact_all
from crate_graph.shipped import shipped_folder

COMMAND_LINE = "command line"


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe: a path, or the name of a shipped recipe (`quickstart`, `crate/imagenet1k_tiny_paper`).

    Raises:
        UserError: one line with the file, the dotted key, the value and what is allowed.
    """
    path = find_recipe(name_or_path)
    return _checked(_read_with_bases(path, ()), overrides, str(path))


def make_recipe(values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from values instead of a file; `source` names them in an error. Raises as `load_recipe`."""
    return _checked([(source, values)], overrides, source)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, without credentials; `load_recipe` of it gives an equal recipe but for those."""
    return dialect.write(redact_all(recipe.model_dump()))


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe that can be trained (the bases cannot)."""
    folder = shipped_folder("recipes")
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files if file.parent.name != "base"}


def find_recipe(name_or_path: str | Path) -> Path:
    """An existing file, else the shipped recipe of that name; the last part of the name suffices where it is unique."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a recipe file in it")
    name = str(name_or_path).removesuffix(".yaml").removeprefix("recipes/")
    shipped = shipped_recipes()
    matches = [known for known in shipped if name in (known, known.rpartition("/")[2])]
    if len(matches) == 1:
        return shipped[matches[0]]
    if matches:
        raise UserError(f"recipe name {name!r} is ambiguous: {', '.join(matches)}; give one of these")
    near = get_close_matches(name, shipped, n=3, cutoff=0.4) or sorted(shipped)
    raise UserError(f"no recipe {str(name_or_path)!r}: no such file, and no shipped recipe; nearest: {', '.join(near)}")


def _checked(sources: Sequence[tuple[str, Mapping[str, Any]]], overrides: Sequence[str], name: str) -> Recipe:
    layers = _Layers()
    for source, values in sources:
        layers.add(values, source)
    for override in overrides:
        layers.add(_parse_override(override), COMMAND_LINE)
    try:
        return Recipe.model_validate(layers.values)
    except ValidationError as error:
        raise UserError(explain(error, lambda location: layers.origin(location, name))) from None


class _Layers:
    """Values merged from several sources, and for each key the source that set it last."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def add(self, values: Mapping[str, Any], source: str) -> None:
        self._merge(self.values, values, source, ())

    def _merge(self, into: dict, values: Mapping, source: str, prefix: tuple[str, ...]) -> None:
        for key, value in values.items():
            location = (*prefix, str(key))
            if isinstance(value, Mapping):
                if not isinstance(into.get(key), dict):
                    into[key] = {}
                    self._origins[location] = source
                self._merge(into[key], value, source, location)
            else:
                into[key] = value
                self._origins[location] = source

    def origin(self, location: tuple[str, ...], default: str) -> str:
        """Who wrote the key, or the nearest section above it; for a contradiction between keys, an override in it."""
        below = {source for key, source in self._origins.items() if key[: len(location)] == location}
        if COMMAND_LINE in below:
            return COMMAND_LINE
        above = [location[:length] for length in range(len(location), 0, -1)]
        return next((self._origins[key] for key in above if key in self._origins), default)


def _read_with_bases(path: Path, readers: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """(source, values) of a file and everything it extends, bases first."""
    resolved = path.resolve()
    if resolved in readers:
        chain = " extends ".join(file.name for file in (*readers[readers.index(resolved) :], resolved))
        raise UserError(f"{path}: the recipes extend each other: {chain}; remove one `extends`")
    values = _read(path)
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: extends={bases!r} is not allowed: it should be a recipe or a list of recipes")
    layers = []
    for base in bases:
        layers += _read_with_bases(_find_base(path, base), (*readers, resolved))
    return [*layers, (str(path), values)]


def _find_base(path: Path, base: str) -> Path:
    for candidate in (path.parent / base, path.parent / f"{base}.yaml", shipped_folder("recipes") / f"{base}.yaml"):
        if candidate.is_file():
            return candidate
    try:
        return find_recipe(base)
    except UserError as error:
        raise UserError(f"{path}: extends {base!r}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = dialect.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {dialect.describe_error(error)}") from None
    if values is None:
        return {}
    if _contains_itself(values):
        raise UserError(f"{path}: an alias makes a value contain itself; write it out")
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, and this is a {type(values).__name__}")
    return values


def _contains_itself(value: Any, above: tuple[int, ...] = ()) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return id(value) in above or any(_contains_itself(item, (*above, id(value))) for item in inner)


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=1` -> {"a": {"b": 1}}; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{COMMAND_LINE}: {override!r} is not an override; write key.path=value, for example seed=1")
    if not is_recipe_key(key):
        raise UserError(f"{COMMAND_LINE}: {unknown_key(key)}")
    try:
        value = dialect.parse(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"{COMMAND_LINE}: {key}={text!r} is not a YAML value: {dialect.describe_error(error)}"
        ) from None
    for name in reversed(key.split(".")):
        value = {name: value}
    return value
