"""YAML as recipes use it: the core schema of YAML 1.2, and no key twice.

PyYAML follows YAML 1.1, where `1e-3` is a string, `no` is false, `010` is eight and `1:30` is ninety.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is written twice", key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes a string that either version of YAML would read as something else; writes lists on one line."""

    def ignore_aliases(self, data):
        return True


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _letters = ["" if letter == "\0" else letter for letter in _first]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _letters)
for _type in (list, tuple):
    _Dumper.add_representer(
        _type, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
    )


def parse(text: str) -> Any:
    """The value of a YAML document; raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(f"nested too deeply, or a value too large to read ({type(error).__name__})") from None


def write(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def describe_error(error: yaml.YAMLError) -> str:
    """`line 3: mapping values are not allowed here`, on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}" if mark else problem
