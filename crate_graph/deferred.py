"""What is loaded when it is first needed: `shards make`, `checkpoint list` and `--help` can do without PyTorch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that takes each name from its home, a module of the package, or is that
    module where they are named alike."""

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(f"{package}.{homes[name]}")
        return home if homes[name] == name else getattr(home, name)

    return __getattr__


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call `act` with the module `name`: now, if it is loaded, else when Python has run it."""
    if name in _ACTS:
        return
    _ACTS[name] = act
    if name in sys.modules:
        act(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


_ACTS: dict[str, Callable[[ModuleType], None]] = {}


class _AfterImport(MetaPathFinder):
    """Finds the awaited modules as Python would, and has their loader call us when the module has run."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _ACTS:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _AfterImport))
        found = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_then_act(module: ModuleType) -> None:
            run(module)
            _ACTS[fullname](module)

        spec.loader.exec_module = run_then_act
        return spec
