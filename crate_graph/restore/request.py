"""What is asked of a network, and whether it was trained for that."""

from __future__ import annotations

from dataclasses import dataclass

from crate_graph.config.schema import Degradation
from crate_graph.data.degrade import PHASES, parse_degradation
from crate_graph.errors import UserError
from crate_graph.export.restorer import Restorer
from crate_graph.tasks.build import describe

LARGEST_SIGMA = 255


@dataclass(frozen=True)
class Request:
    """One of four: `degrade` a full picture first; take it as a `mosaic`; enlarge it by `scale`; take it as it is.

    mosaic: the phase, for instance RGGB
    sigma: noise that the network is told of, of 255; None: that of `degrade`
    """

    degrade: Degradation | None = None
    mosaic: str | None = None
    scale: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("degrade", "mosaic", "scale") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; keep the one that the pictures are for")
        if self.mosaic is not None and self.mosaic not in PHASES:
            raise UserError(f"--mosaic {self.mosaic}: unknown phase; write one of {', '.join(PHASES)}")
        if self.scale not in (None, 2):
            raise UserError(f"--scale {self.scale}: pictures are enlarged by 2; write --scale 2")
        if self.sigma is not None and not 0 <= self.sigma <= LARGEST_SIGMA:
            raise UserError(f"--sigma {self.sigma:g}: noise is from 0 to {LARGEST_SIGMA}, where white is 255")

    @property
    def kind(self) -> str:
        """The kind of degradation that is undone."""
        if self.degrade is not None:
            return self.degrade.kind
        if self.mosaic is not None:
            return "bayer"
        return "none" if self.scale is None else "decimate"

    @property
    def phase(self) -> str | None:
        """Of the mosaic that is restored, where it is one."""
        return self.degrade.phase if self.degrade is not None and self.kind == "bayer" else self.mosaic

    def told_sigma(self) -> float:
        """Standard deviation of the noise that the network is told of, where white is 1."""
        own = self.degrade.sigma if self.degrade is not None else 0.0
        return (own if self.sigma is None else self.sigma) / 255


def make_request(
    degrade: str | None = None,
    noise: float | None = None,
    *,
    mosaic: str | None = None,
    scale: int | None = None,
    sigma: float | None = None,
) -> Request:
    """A request as the command line says it. `noise`: what is added when `degrade` is applied, of 255.

    Raises:
        UserError: an unknown degradation, words that exclude each other, noise without a degradation.
    """
    if degrade is None:
        if noise is not None:
            raise UserError(
                f"--noise {noise:g}: is added when a picture is degraded; add --degrade none, or tell a model "
                f"of the noise that is there with --sigma"
            )
        return Request(mosaic=mosaic and mosaic.upper(), scale=scale, sigma=sigma)
    if noise is not None and not 0 <= noise <= LARGEST_SIGMA:
        raise UserError(f"--noise {noise:g}: noise is from 0 to {LARGEST_SIGMA}, where white is 255")
    degradation = parse_degradation(degrade, noise or 0.0)
    if degradation.phase == "any":
        raise UserError(f"--degrade {degrade}: a picture has one phase; write one of {', '.join(PHASES)}")
    if degradation.kind == "none" and not degradation.sigma:
        raise UserError("--degrade none: leaves nothing to restore; add --noise S, where white is 255")
    return Request(degradation, mosaic, scale, sigma)


def check_request(request: Request, restorer: Restorer, name: str) -> None:
    """Raise UserError for what the network was not trained for. `name` is what the user called it."""
    trained, aware = restorer.degradation, getattr(restorer.model, "noise_aware", False)
    if request.sigma is not None and not aware:
        raise UserError(f"{name}: takes no noise level; leave --sigma {request.sigma:g} out (--noise adds some)")
    if request.kind == trained.kind:
        if request.kind == "none" and aware and request.told_sigma() == 0:
            raise UserError(
                f"{name}: removes noise; say how much there is with --sigma S (white is 255), or add some with "
                f"--degrade none --noise S"
            )
        return
    ways = {
        "bayer": "restores mosaics: give one with --mosaic RGGB, or make one of a full picture with "
        "--degrade bayer:RGGB",
        "decimate": "doubles the size: write --scale 2, or try it on a picture that is made smaller first with "
        "--degrade decimate",
        "random": "fills in missing pixels: write --degrade random:0.25",
        "none": "removes noise: write --sigma S, or add some with --degrade none --noise S",
    }
    asked = "a full picture as it is" if request.kind == "none" else request.kind
    raise UserError(f"{name}: was trained for {describe(trained)}, not for {asked}; it {ways[trained.kind]}")
