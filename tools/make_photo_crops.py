"""Make the shards that ship in datasets/photo_crops from a folder of freely licensed photographs.

    python tools/make_photo_crops.py FOLDER_OF_THE_PHOTOGRAPHS datasets/photo_crops

The folder holds the photographs named below as NAME.png, each scaled down by Pillow's Lanczos filter until its longer
side had 960 pixels; datasets/photo_crops/README.md says where the originals are. A training photograph gives up to 10
squares of 96 pixels, a test photograph its most detailed square of 256. The same photographs give the same samples.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from crate_graph.data.make import make_shards

TRAIN = (
    "budgie_abstract-spiral",
    "budgie_beacon-street-sunset",
    "budgie_blue-periwinkle",
    "budgie_canyon-wren",
    "budgie_casa-mila",
    "budgie_extreme-desert-hike",
    "budgie_high-trestle-trail",
    "budgie_perched-osprey",
    "budgie_piazza-gae-aulenti",
    "budgie_tea-gardens",
    "budgie_the-spices-of-life",
    "elementary_Jonas_Nilsson_Lee",
    "elementary_Photo_by_SpaceX",
    "elementary_Sunset_by_the_Pier",
    "lomiri_Picture_0B_by_freespace",
    "lomiri_Wine_by_Jakkub_Mede",
    "lomiri_aitzgorri_by_Aitzol_Berasategi",
    "lomiri_life_by_Aitzol_Berasategi",
    "lomiri_picosdeeuropa_by_Aitzol_Berasategi",
    "lomiri_seeding_by_Clements_Engelhardt",
    "lomiri_sunset_by_Aitzol_Berasategi",
)
TEST = (
    "budgie_lake-sherburne",
    "budgie_oakland-zoo-otters",
    "budgie_roman-colosseum",
    "budgie_singaporean-cityscape",
    "elementary_Ashim_DSilva",
    "elementary_Mr_Lee",
    "lomiri_Picture_1A_by_freespace",
    "lomiri_friends_by_Aitzol_Berasategi",
)
TRAIN_SIDE, MOST = 96, 10
FLAT = 6  # mean size of the luma's gradient, of 255, below which a square teaches little: sky, blurred background
TEST_SIDE, TEST_STRIDE = 256, 16
ABOUT = {
    "name": "photo_crops",
    "licence": "CC0-1.0 and CC-BY-4.0, per photograph; see README.md",
    "source": "https://github.com/BuddiesOfBudgie/budgie-backgrounds, https://github.com/elementary/wallpapers, "
    "https://gitlab.com/ubports/development/core/lomiri-wallpapers; see README.md",
    "channels": 3,
    "classes": ["photograph"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of the photographs")
    parser.add_argument("output", type=Path, help="folder of the shards")
    arguments = parser.parse_args()
    for split, names, shards in (("train", TRAIN, 3), ("test", TEST, 1)):
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                photograph = Image.open(arguments.photographs / f"{name}.png").convert("RGB")
                squares = training_squares(photograph) if split == "train" else [test_square(photograph)]
                for left, top, side in squares:
                    crop = photograph.crop((left, top, left + side, top + side))
                    crop.save(Path(folder) / f"{name}_{top}_{left}.png", optimize=True)
            made = make_shards(
                folder, arguments.output, split=split, unlabelled=True, shards=shards, about=ABOUT, force=True
            )
        print(f"{split}: {sum(shard.samples for shard in made.shards)} samples in {len(made.shards)} shards")


def training_squares(photograph: Image.Image) -> list[tuple[int, int, int]]:
    """(left, top, side) of squares that do not overlap and are not flat, at equal steps of detail."""
    squares = [square for detail, square in by_detail(photograph, TRAIN_SIDE, TRAIN_SIDE) if detail > FLAT]
    ranks = np.linspace(0, len(squares) - 1, min(len(squares), MOST)).round().astype(int)
    return [squares[rank] for rank in ranks]


def test_square(photograph: Image.Image) -> tuple[int, int, int]:
    return by_detail(photograph, TEST_SIDE, TEST_STRIDE)[0][1]


def by_detail(photograph: Image.Image, side: int, stride: int) -> list[tuple[float, tuple[int, int, int]]]:
    """Mean size of the luma's gradient and (left, top, side) of the squares at every `stride` pixels, largest first."""
    luma = np.asarray(photograph.convert("L"), dtype=np.int64)  # (H, W)
    gradient = np.abs(np.diff(luma, axis=0))[:, :-1] + np.abs(np.diff(luma, axis=1))[:-1]  # (H - 1, W - 1)
    found = []
    for top in range(0, photograph.height - side + 1, stride):
        for left in range(0, photograph.width - side + 1, stride):
            inside = gradient[top : top + side - 1, left : left + side - 1]
            found.append((float(inside.mean()), (left, top, side)))
    return sorted(found, reverse=True)


if __name__ == "__main__":
    main()
