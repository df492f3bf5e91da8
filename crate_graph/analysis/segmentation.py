"""Objects found by normalised cuts of the tokens' affinity, without a label, and how well they meet given masks.

TokenCut (arXiv 2202.11539) cuts the graph of patches in two by the second eigenvector of its Laplacian (Shi and Malik,
IEEE TPAMI 22(8), 2000); MaskCut (CutLER, arXiv 2301.11320) hides what it found and cuts again. arXiv 2308.16271 takes
the coordinates U_k'z of CRATE as features. No CRF refines the masks: they are made of whole patches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crate_graph.analysis.captions import Caption, explained
from crate_graph.analysis.figures import (
    LETTERS,
    OTHER,
    TRAINED,
    Figure,
    columns_of_pictures,
    sheet,
    show,
    show_captioned,
)
from crate_graph.analysis.tokens import Heads
from crate_graph.data.progress import progress

OBJECTS, TAU = 3, 0.15  # of a picture, at most; the cosine from which two patches are joined (CutLER)
_APART = 1e-5  # the weight of all other pairs
_MASS = 0.6  # of a head's attention: the patches that hold it are taken as its mask (arXiv 2104.14294)
_COLOURS = ((0.0, 0.62, 0.45), (0.9, 0.45, 0.1), (0.25, 0.4, 0.85))


def mask_cut(features: Tensor, grid: tuple[int, int], objects: int = OBJECTS, tau: float = TAU) -> list[np.ndarray]:
    """Up to `objects` masks (h, w) bool, the clearest first. features (h w, D).

    Affinity: 1 where the cosine of two patches is at least tau, else 1e-5. A cut that finds mostly what was found
    before ends the search.
    """
    features = F.normalize(features.double(), dim=-1)
    taken = np.zeros(grid, dtype=bool)
    found: list[np.ndarray] = []
    for _ in range(objects):
        visible = torch.from_numpy(~taken.ravel()).double()[:, None]
        mask = normalized_cut((features * visible) @ (features * visible).T, grid, tau)
        if (mask & taken).sum() > mask.sum() / 2:
            break
        found.append(mask & ~taken)
        taken |= mask
    return found


def normalized_cut(similarity: Tensor, grid: tuple[int, int], tau: float) -> np.ndarray:
    """The foreground of the best cut in two: (h w, h w) -> (h, w) bool, connected.

    The cut is at the mean of the second eigenvector of (D - W) y = lambda D y. In front is the side of its largest
    entry, unless that side has three corners of the picture; of it, the part that hangs together with that entry.
    """
    w = torch.where(similarity >= tau, 1.0, _APART)
    root = w.sum(dim=1).rsqrt()  # D^-1/2
    _, vectors = torch.linalg.eigh(torch.diag(torch.ones_like(root)) - root[:, None] * w * root)
    vector = (root * vectors[:, 1]).reshape(grid)  # (h, w)
    front = vector > vector.mean()
    largest = vector.abs().argmax()
    corners = int(front[0, 0]) + int(front[0, -1]) + int(front[-1, 0]) + int(front[-1, -1])
    if corners >= 3 or not front.flatten()[largest]:
        front, vector = ~front, -vector
    seed = int(torch.where(front, vector, -torch.inf).argmax())
    return _connected(front.numpy(), divmod(seed, grid[1]))


def _connected(inside: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """What of `inside` is reached from `start` through sides of patches."""
    reached = np.zeros_like(inside)
    reached[start] = True
    queue = deque([start])
    while queue:
        y, x = queue.popleft()
        for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            within = 0 <= place[0] < inside.shape[0] and 0 <= place[1] < inside.shape[1]
            if within and inside[place] and not reached[place]:
                reached[place] = True
                queue.append(place)
    return reached


def attention_masks(heads: Heads, number: int) -> np.ndarray:
    """(K, h, w) bool of one picture: the patches that hold 60 % of each head's attention, the strongest first."""
    weights = heads.attention()[number].flatten(1)  # (K, h w)
    ordered, places = weights.sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered
    kept = torch.zeros_like(weights, dtype=torch.bool).scatter(1, places, before < _MASS)
    return kept.unflatten(1, heads.grid).numpy()


def intersection_over_union(found: np.ndarray, mask: np.ndarray) -> float:
    """Of a patch mask (h, w), enlarged to the pixels of `mask` (H, W); 0 where both are empty."""
    rows = np.arange(mask.shape[0]) * found.shape[0] // mask.shape[0]
    columns = np.arange(mask.shape[1]) * found.shape[1] // mask.shape[1]
    found = found[rows][:, columns]
    union = (found | mask).sum()
    return float((found & mask).sum() / union) if union else 0.0


def judge(heads: Heads, masks: dict[int, np.ndarray]) -> list[tuple[int, str, float]]:
    """(picture, method, IoU) of the pictures that have a mask (H, W)."""
    found = []
    features = heads.features()
    for number, mask in progress(masks.items(), len(masks), "judging by the masks"):
        objects = mask_cut(features[number], heads.grid)
        nothing = np.zeros(heads.grid, dtype=bool)
        ways = {
            "MaskCut: first object": objects[0] if objects else nothing,
            "MaskCut: all objects": np.logical_or.reduce([nothing, *objects]),
            "the whole picture": ~nothing,
        }
        found += [(number, way, intersection_over_union(front, mask)) for way, front in ways.items()]
        best = max(intersection_over_union(front, mask) for front in attention_masks(heads, number))
        found.append((number, "attention: best head", best))
    return found


def segmentation_figure(
    seen: list[np.ndarray], captions: list[Caption], heads: Heads, where: str, masks: Sequence[np.ndarray | None]
) -> Figure:
    """The objects of each picture, coloured, and below them the given masks (H, W), where there are some."""
    features, rows = heads.features(), []
    lines = 2 if all(mask is None for mask in masks) else 3
    with columns_of_pictures(len(seen), lines) as (made, columns):
        shown = progress(zip(columns, seen, captions, masks, strict=True), len(seen), "cutting out objects")
        for number, (axes, picture, caption, given) in enumerate(shown):
            show_captioned(axes[0], picture, caption.lines, caption.wrong, LETTERS)
            objects = mask_cut(features[number], heads.grid)
            iou = "" if given is None else f", first: IoU {intersection_over_union(objects[0], given):.2f}"
            show(axes[1], _painted(picture, objects), f"{len(objects)} found{iou}")
            if given is not None:
                show(axes[2], _painted(picture, [given]), "the given mask")
            for place, mask in enumerate(objects, start=1):
                rows += [(caption.key, place, int(y), int(x)) for y, x in zip(*mask.nonzero(), strict=True)]
    return Figure(
        "maskcut",
        f"Objects cut out without a label, {where}",
        "Patches whose tokens point the same way are tied together, and the picture is cut where the fewest ties are; "
        "first found is green, then orange and blue. Nobody told the network where an object ends. Clean outlines do "
        "not yet show that it knows: contrast alone, as of something bright on black, gives them in hardly trained "
        f"networks, too.{explained(captions)}",
        f"MaskCut, arXiv 2301.11320, after TokenCut, arXiv 2202.11539, on {heads.features_in_words}; tau 0.15",
        made.bytes,
        "png",
        ("picture", "object", "patch row", "patch column"),
        rows,
    )


def iou_figure(judged: dict[str, list[tuple[int, str, float]]], keys: list[str]) -> Figure:
    """Mean IoU of each way for each model: `judged` holds what `judge` gave, by the model's label."""
    ways = list(dict.fromkeys(way for found in judged.values() for _, way, _ in found))
    rows = [(label, keys[number], way, iou) for label, found in judged.items() for number, way, iou in found]
    with sheet(1, 1, height=3.2, width=7.5) as made:
        axes = made.axes[0, 0]
        for place, (label, colour) in enumerate(zip(judged, (TRAINED, OTHER), strict=False)):
            values = [[iou for _, each, iou in judged[label] if each == way] for way in ways]
            tops = np.arange(len(ways)) + 0.4 * place
            spread = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
            axes.barh(tops, [np.mean(v) for v in values], 0.36, xerr=spread, color=colour, label=label, capsize=2)
        axes.set_yticks(np.arange(len(ways)) + 0.2 * (len(judged) - 1), ways)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="intersection over union with the mask")
        axes.legend(fontsize=8)
    return Figure(
        "foreground_iou",
        "Foreground: found against given masks",
        "1 says that what was found in front is exactly what the mask says, 0 that they have nothing in common; bars "
        "are one standard deviation over the pictures. Any method should beat the whole picture taken "
        "as foreground; the best head is chosen by the mask itself.",
        "MaskCut as above; the patches that hold 60 % of a head's attention, as in arXiv 2104.14294",
        made.bytes,
        "svg",
        ("model", "picture", "way", "IoU"),
        rows,
    )


def _painted(picture: np.ndarray, objects: list[np.ndarray]) -> np.ndarray:
    painted = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture.copy()
    height, width = painted.shape[:2]
    for mask, colour in zip(objects, _COLOURS, strict=False):
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        large = mask[rows][:, columns]
        painted[large] = 0.45 * painted[large] + 0.55 * np.array(colour)
    return painted
