"""Names of classes as names of folders, which `extract` writes and `make` finds again; one class under both names."""

from __future__ import annotations

import re
from collections.abc import Sequence

UNSAFE = r'[\x00-\x1f\x7f/\\:*?"<>|]'  # between folders, and what some file system refuses
LONGEST = 200  # bytes; file systems allow 255


def class_folders(classes: list[str] | int) -> tuple[str, ...]:
    """A folder name for each class, in the order of the labels; no two are alike, in capitals or not.

    A name stays as it is but for what a folder name cannot hold or would be hidden or lead elsewhere by, which becomes
    `_`: "T-shirt/top" is the folder `T-shirt_top`. Where two names would become one, the class number stands before
    all of them. Classes that are only counted are numbers, with zeros before them: `07` of 10 to 100 classes.
    """
    width = len(str((classes if isinstance(classes, int) else len(classes)) - 1))
    if isinstance(classes, int):
        return tuple(f"{number:0{width}d}" for number in range(classes))
    folders = [folder_name(name) for name in classes]
    if len({folder.casefold() for folder in folders}) < len(folders):
        folders = [f"{number:0{width}d}_{folder}" for number, folder in enumerate(folders)]
    return tuple(folders)


def folder_name(name: str) -> str:
    """The name of one folder, visible and never a way to another one."""
    safe = re.sub(UNSAFE, "_", name).strip()
    safe = re.sub(r"^\.|\.$|^$", "_", safe)
    return safe.encode()[:LONGEST].decode(errors="ignore").rstrip()


def are_named(classes: Sequence[str]) -> bool:
    """Whether these are names; what only counts its classes has their numbers in the place of names."""
    return tuple(classes) != tuple(map(str, range(len(classes))))


def match_classes(known: Sequence[str], names: Sequence[str]) -> tuple[int, ...] | None:
    """For each of `names` its number among the `known`, either of which may be in another order or names of folders.

    None where they are not the same classes.
    """
    for one, other in ((known, names), (class_folders(list(known)), class_folders(list(names)))):
        if len(one) == len(other) and set(one) == set(other):
            place = {name: number for number, name in enumerate(one)}
            return tuple(place[name] for name in other)
    return None
