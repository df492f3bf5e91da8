"""One finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from crate_graph.errors import RunFailed, UserError
from crate_graph.redaction import redact

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What was found on a host, and what to do about it where it is not ok."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    host: str = ""

    def __post_init__(self):
        object.__setattr__(self, "found", redact(" ".join(self.found.split())))
        remedy = "" if self.status == "ok" else redact(" ".join(self.remedy.split()))
        object.__setattr__(self, "remedy", remedy)


def failing(name: str, look: Callable[..., list[Check]], *args: object) -> list[Check]:
    """The findings of `look`; what it stumbles over is a finding as well, and no end of the examination."""
    try:
        return look(*args)
    except (UserError, RunFailed) as error:
        found, _, remedy = str(error).rpartition("; ")
        return [Check(name, "failed", found or remedy, remedy if found else "")]
    except Exception as error:
        return [Check(name, "failed", f"{type(error).__name__}: {error}", "the check itself failed; please report it")]


def amount(count: float) -> str:
    """Bytes in the unit that shows them best, with three figures: 3.61 MB."""
    unit, scale = next((each for each in _UNITS if count >= 0.9995 * each[1]), _UNITS[-1])
    return f"{count / scale:.3g} {unit}"
