"""The comparison picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from crate_graph.restore.compare import GAP, PANEL, busiest_box, write_comparison


def test_the_detail_is_where_the_result_differs_most():
    before = np.full((120, 200, 3), 0.5, np.float32)
    after = before.copy()
    after[70:80, 150:160] += 0.4
    after[10:14, 10:14] -= 0.4
    left, top, side = busiest_box(before, after)
    assert left <= 150 and left + side >= 160 and top <= 70 and top + side >= 80
    assert busiest_box(before, before) == (0, 0, side)
    assert busiest_box(before[:6, :5], after[:6, :5])[2] == 5


def test_a_panel_for_each_picture(tmp_path):
    height, width = 60, 90
    colours = [(0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9)]
    pictures = [np.full((height, width, 3), colour, np.float32) for colour in colours]
    write_comparison(tmp_path / "c.png", [(f"picture {n}", picture) for n, picture in enumerate(pictures)])
    sheet = np.asarray(Image.open(tmp_path / "c.png")).astype(int)
    assert sheet.shape[1] == GAP + 3 * (PANEL + GAP)
    for number, colour in enumerate(colours):
        column = GAP + number * (PANEL + GAP) + PANEL // 2
        shown = (np.abs(sheet[:, column] - np.rint(255 * np.array(colour))) <= 1).all(axis=1)
        assert shown.sum() >= round(PANEL * height / width) + PANEL - 8  # the whole, its frame aside, and the detail
        caption = sheet[GAP : GAP + 20, column - PANEL // 2 : column]
        assert (caption < 128).any() and (caption > 250).any()


def test_grey_pictures_have_one_too(tmp_path):
    grey = np.random.default_rng(0).random((30, 700, 1), dtype=np.float32)
    write_comparison(tmp_path / "c.png", [("before", grey), ("after", 1 - grey)])
    assert Image.open(tmp_path / "c.png").mode == "RGB"
