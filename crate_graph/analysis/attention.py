"""Attention maps of each head, and the principal components of the tokens as colours (arXiv 2308.16271)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crate_graph.analysis.captions import Caption, explained
from crate_graph.analysis.figures import LETTERS, Figure, columns_of_pictures, picture_sheet, show, show_captioned
from crate_graph.analysis.tokens import Heads

_BRIGHT = 0.99  # quantile of a map's weights from which on a patch is brightest: one patch may outshine all others
_BEHIND = 0.91  # grey of what is not in front: no component has it in all three colours
_TAIL = 0.02  # share of the values at either end that a scale leaves out: a few tokens may lie far off
_PAPER = "arXiv 2308.16271"


def attention_figure(seen: list[np.ndarray], captions: list[Caption], heads: Heads, where: str) -> Figure:
    """A row for each picture, a map for each head. seen: (H, W, C) each."""
    maps = heads.attention()  # (B, K, h, w)
    count = maps.shape[1]
    columns = min(count, 8) + 1
    lines = -(-count // (columns - 1))
    rows = []
    with picture_sheet([2, *[1] * (lines - 1)] * len(seen), columns) as made:
        for number, (picture, caption) in enumerate(zip(seen, captions, strict=True)):
            block = made.axes[number * lines : (number + 1) * lines]
            show_captioned(block[0, 0], picture, caption.lines, caption.wrong)
            for head in range(count):
                axes = block[head // (columns - 1), 1 + head % (columns - 1)]
                weights = maps[number, head].numpy()
                low = 0.0 if heads.memberships is None else np.quantile(weights, 1 - _BRIGHT)  # they differ by little
                how = {"cmap": "magma", "vmin": low, "vmax": np.quantile(weights, _BRIGHT)}
                show(axes, weights, f"head {head + 1}", **how)
                rows += [(caption.key, head + 1, y, x, float(w)) for (y, x), w in np.ndenumerate(weights)]
    says, source = _words(heads)
    return Figure(
        "attention",
        f"Attention: where each head looks, {where}",
        f"{says} The brightest are the highest 1 % of that map, so brightness does not compare maps. "
        f"In a network that has learned well, heads single out the object and its parts.{explained(captions)}",
        source,
        made.bytes,
        "png",
        ("picture", "head", "patch row", "patch column", "weight"),
        rows,
    )


def _words(heads: Heads) -> tuple[str, str]:
    """What is drawn, and its source."""
    if heads.memberships is not None:
        return (
            "ToST compares no patches: each patch belongs to each head to some degree. For each picture and each head: "
            "the weight of every patch in that head, from black for the lowest 1 %; where memberships are near alike, "
            "this magnifies small differences.",
            "arXiv 2412.17810: the membership of a patch over the sum of those of all patches",
        )
    products = "<U_k'z_i, U_k'z_cls>" if heads.white_box else "the products of keys with the query of that token"
    source = f"{_PAPER}: softmax over the patches of {products}"
    if heads.has_class_token:
        return (
            "For each picture and each head: how strongly the class token attends to every patch, from black for 0.",
            source,
        )
    return (
        "For each picture and each head: how strongly every patch is attended to, mean over all patches; black is 0.",
        source,
    )


def pca_figure(seen: list[np.ndarray], captions: list[Caption], heads: Heads, where: str) -> Figure:
    """Picture, first component, and three components of the foreground as RGB, a column for each picture."""
    first, colours, front = principal_colours(heads.features(), heads.grid)
    rows = []
    with columns_of_pictures(len(seen), 3) as (made, columns):
        for number, (axes, picture, caption) in enumerate(zip(columns, seen, captions, strict=True)):
            show_captioned(axes[0], picture, caption.lines, caption.wrong, LETTERS)
            show(axes[1], first[number], "first component", cmap="cividis")
            painted = np.where(front[number][..., None], colours[number], _BEHIND)
            show(axes[2], painted, f"in front: {front[number].mean():.0%} of the patches")
            for (y, x), value in np.ndenumerate(first[number]):
                inside = int(front[number, y, x])
                rows.append((caption.key, y, x, float(value), inside, *map(float, colours[number, y, x])))
    return Figure(
        "pca",
        f"Principal components of the tokens as colours, {where}",
        "The first component is the one direction in which the tokens of all pictures differ most; it often parts what "
        "is in front (yellow) from the background (blue), though with few pictures it may part ground from sky as "
        "well. What is in front, above the mean of all patches, is then coloured by three more: patches that the "
        "network holds to be alike have like colours, in all pictures together, and what is behind is light grey. "
        f"Pictures of one class show best whether a part keeps its colour.{explained(captions)}",
        f"{_PAPER}: PCA of {heads.features_in_words}; the first component is cut at its mean, then PCA of what is left",
        made.bytes,
        "png",
        ("picture", "patch row", "patch column", "first component", "in front", "red", "green", "blue"),
        rows,
    )


def principal_colours(features: Tensor, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first principal component in [0, 1], three components of what it puts in front, 0 elsewhere, and the front.

    In front is what lies above the mean of the first component: halfway between its ends a few tokens far off would
    leave next to nothing there. Which end is in front is told by the border of the pictures: it is mostly background.

    features (B, h w, D) -> (B, h, w), (B, h, w, 3) and (B, h, w) bool.
    """
    pictures = len(features)
    tokens = features.flatten(0, 1).double()  # (B h w, D)
    first = _components(tokens, 1)  # (B h w, 1), of mean 0
    border = torch.ones(grid, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    on_border = border.flatten().repeat(pictures)
    if not on_border.all() and first[on_border].mean() > first[~on_border].mean():
        first = -first
    front = first[:, 0] > 0
    if front.sum() < 4:
        front = torch.ones_like(front)
    colours = torch.zeros(len(tokens), 3, dtype=torch.float64)
    found = _scaled(_components(tokens[front], 3))
    colours[front, : found.shape[1]] = found
    shape = (pictures, *grid)
    return _scaled(first).reshape(shape).numpy(), colours.reshape(*shape, 3).numpy(), front.reshape(shape).numpy()


def _components(tokens: Tensor, count: int) -> Tensor:
    """Coordinates along the first principal directions, each turned so that its largest entry is positive."""
    centred = tokens - tokens.mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found = u[:, :count] * s[:count]  # (N, count)
    largest = found.gather(0, found.abs().argmax(dim=0, keepdim=True))
    return found * largest.sign()


def _scaled(values: Tensor) -> Tensor:
    """Each column to [0, 1], all but its tails."""
    low, high = values.quantile(_TAIL, dim=0), values.quantile(1 - _TAIL, dim=0)
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
