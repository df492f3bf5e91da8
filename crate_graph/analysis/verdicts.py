"""What the curves say here: whether what theory or a publication expects was seen, in sentences with the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from crate_graph.analysis.measured import Measured

if TYPE_CHECKING:
    from crate_graph.analysis.curves import Series

AFTER, BEFORE_SUBTRACTION, AFTER_SUBTRACTION = "rc_output", "decoder_rc_half_step", "decoder_rc_output"


def verdict(figure: str, series: Sequence[Series]) -> str:
    """A sentence or two on the figure of that name; empty where there is nothing to judge.

    `series` are the trained network, the initial one, and perhaps another.
    """
    return _VERDICTS[figure](series) if figure in _VERDICTS else ""


def number(m: Measured) -> str:
    """Mean and spread, as the page writes them."""
    spread = f"\xa0±\xa0{m.std:.2g}" if m.std else ""
    return plain(m.mean) + spread


def plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _compression(series: Sequence[Series]) -> str:
    """R^c from the first to the last layer, trained and random."""
    lines = [(each.label, _of(each, AFTER)) for each in series]
    lines = [(label, values) for label, values in lines if len(values) > 1]
    if len(lines) < 2 or [label for label, _ in lines[:2]] != [each.label for each in series[:2]]:
        return ""
    said = "; ".join(f"{label}: {plain(v[0].mean)} to {plain(v[-1].mean)}" for label, v in lines)
    trained, random = (values[0].mean - values[-1].mean for _, values in lines[:2])
    if trained <= 0:
        judged = "So what is published is not seen here: after training it does not fall."
    elif trained <= random:
        judged = "So what is published is not seen here: with random weights it falls, too, and by as much or more."
    else:
        judged = "So it falls by more after training than with random weights, as published."
    return f"From the first to the last layer (after the layer; Rᶜ, nats). {said}. {judged}"


def _decoder(series: Sequence[Series]) -> str:
    """R^c of the decoder's last layer before and after attention is subtracted."""
    ends = [(each.label, _of(each, BEFORE_SUBTRACTION)[-1:], _of(each, AFTER_SUBTRACTION)[-1:]) for each in series]
    found = [(label, before[0], after[0]) for label, before, after in ends if before and after]
    if not found:
        return ""
    said = [
        f"{label}: {plain(before.mean)} before, {plain(after.mean)} after, so what is derived "
        f"{'is seen' if after.mean > before.mean else 'is not seen'}"
        for label, before, after in found
    ]
    return f"In the decoder's last layer (Rᶜ, nats, before and after attention is subtracted). {'; '.join(said)}."


def _dimensions(series: Sequence[Series]) -> str:
    """What an effective rank can be at most: the number of singular values."""
    longest = {
        each.label: max((len(m.values) for m in each.matrices if "spectrum" in m.name), default=0) for each in series
    }
    found = {label: length for label, length in longest.items() if length}
    if len(set(found.values())) == 1:
        return f"An effective rank is at most {next(iter(found.values()))} here, the width of a token."
    said = "; ".join(f"{label}: {length}" for label, length in found.items())
    return f"An effective rank is at most the width of a token. {said}." if said else ""


def _of(series: Series, name: str) -> list[Measured]:
    return sorted((m for m in series.measured if m.name == name), key=lambda m: m.layer)


_VERDICTS: dict[str, Callable[[Sequence[Series]], str]] = {
    "rate_given_subspaces": _compression,
    "decoder_rates": _decoder,
    "dictionary": _dimensions,
    "decoder_matrices": _dimensions,
}
