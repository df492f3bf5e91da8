"""Findings as a table, or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import wrap

from crate_graph.doctor.check import Check

WIDTH = 118


def as_json(checks: Sequence[Check]) -> str:
    """{"ok", "warning", "failed": how many, "checks": [{"name", "status", "found", "remedy", "host"}, ...]}"""
    return json.dumps({**_counts(checks), "checks": [asdict(check) for check in checks]}, indent=2)


def as_table(checks: Sequence[Check]) -> str:
    """One line for what several hosts have alike; a remedy below what needs one."""
    hosts: dict[tuple[str, str, str, str], list[str]] = {}
    for check in checks:
        hosts.setdefault((check.name, check.status, check.found, check.remedy), []).append(check.host)
    names = sorted({key[0] for key in hosts}, key=[key[0] for key in hosts].index)
    several = len({check.host for check in checks if check.host}) > 1
    width = max(map(len, names))
    lines = []
    for (name, status, found, remedy), where in sorted(hosts.items(), key=lambda item: names.index(item[0][0])):
        at = f"{', '.join(where)}: " if several and any(where) else ""
        head = f"{status:8} {name:{width}}  "
        lines += wrap(at + found, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), **_WHOLE)
        if status != "ok" and remedy:
            lines += wrap(
                f"-> {remedy}", WIDTH, initial_indent=" " * len(head), subsequent_indent=" " * len(head), **_WHOLE
            )
    counts = _counts(checks)
    plural = "s" if counts["warning"] != 1 else ""
    return "\n".join([*lines, "", f"{counts['ok']} ok, {counts['warning']} warning{plural}, {counts['failed']} failed"])


_WHOLE = {"break_long_words": False, "break_on_hyphens": False}  # commands and addresses stay whole


def _counts(checks: Sequence[Check]) -> dict[str, int]:
    counted = Counter(check.status for check in checks)
    return {status: counted[status] for status in ("ok", "warning", "failed")}
