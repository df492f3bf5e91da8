"""Says in one line what is wrong with a recipe: the file, the dotted key, the value, and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from crate_graph.config.schema import Recipe
from crate_graph.redaction import redact


def recipe_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a recipe, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        kind = _kind(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from recipe_keys(kind, f"{prefix}{name}.")


def is_recipe_key(key: str) -> bool:
    """Whether the schema has `key`; below a field of type dict (model.kwargs) every key is allowed."""
    section: type = Recipe
    for name in key.split("."):
        if get_origin(section) is dict:
            return True
        if not (isinstance(section, type) and issubclass(section, BaseModel) and name in section.model_fields):
            return False
        section = _kind(section.model_fields[name].annotation)
    return True


def _kind(annotation: Any) -> Any:
    """The section that a key of type `Section | None` stands for; any other annotation as it is."""
    sections = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return sections[0] if sections else annotation


def unknown_key(key: str) -> str:
    """`unknown key optimiser.lr; did you mean optimizer.lr?`"""

    def likeness(known: str) -> float:
        last = SequenceMatcher(None, key.rpartition(".")[2], known.rpartition(".")[2]).ratio()
        return SequenceMatcher(None, key, known).ratio() + last

    nearest = max(recipe_keys(), key=likeness)
    hint = (
        f"did you mean {nearest}?" if likeness(nearest) > 1.1 else "the keys are listed in crate_graph/config/schema.py"
    )
    return f"unknown key {key}; {hint}"


def explain(error: ValidationError, origin: Callable[[tuple[str, ...]], str]) -> str:
    """The first problem in full, and the keys of the others. `origin` tells where a key's value was written."""
    problems = error.errors(include_url=False)
    first, *others = problems
    text = f"{origin(_location(first))}: {_describe(first)}"
    if others:
        text += f" (and {len(others)} more: {', '.join(_key(problem) for problem in others)})"
    return " ".join(text.split())


def _location(problem: dict) -> tuple[str, ...]:
    return tuple(str(part) for part in problem["loc"])


def _key(problem: dict) -> str:
    return ".".join(_location(problem)) or "the recipe as a whole"


def _describe(problem: dict) -> str:
    key = _key(problem)
    if problem["type"] == "extra_forbidden":
        return unknown_key(key)
    if problem["type"] == "missing":
        return f"{key} is missing; it has no default"
    if problem["type"] == "value_error":  # a contradiction between keys: the schema's own sentence holds the remedy
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        problem["msg"] = "Input should be a mapping of keys to values"
    value = redact(repr(problem["input"]))
    value = value if len(value) <= 60 else value[:57] + "..."
    return f"{key}={value} is not allowed: {problem['msg'].replace('Input should', 'it should')}"
