"""Make the shards that ship in datasets/fashion_mnist from the four IDX files of Fashion-MNIST.

    python tools/make_fashion_mnist.py FOLDER_OF_THE_IDX_FILES datasets/fashion_mnist

The folder holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and
t10k-labels-idx1-ubyte.gz, from https://github.com/zalandoresearch/fashion-mnist. The first 1,000 training images and
the first 200 test images of each class are kept. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crate_graph.data.make import make_shards

ABOUT = {
    "name": "fashion_mnist",
    "licence": "MIT, Copyright (c) 2017 Zalando SE; see README.md",
    "source": "https://github.com/zalandoresearch/fashion-mnist (60,000 + 10,000 images; this is a part of them)",
    "channels": 1,
    "classes": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    "mean": [0.286],
    "std": [0.353],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idx", type=Path, help="folder of the four IDX files")
    parser.add_argument("output", type=Path, help="folder of the shards")
    arguments = parser.parse_args()
    for split, prefix, per_class, shards in (("train", "train", 1000, 16), ("test", "t10k", 200, 4)):
        made = make_shards(
            arguments.idx / f"{prefix}-images-idx3-ubyte.gz",
            arguments.output,
            split=split,
            labels=arguments.idx / f"{prefix}-labels-idx1-ubyte.gz",
            per_class=per_class,
            shards=shards,
            about=ABOUT,
            force=True,
        )
        print(f"{split}: {sum(shard.samples for shard in made.shards)} samples in {len(made.shards)} shards")


if __name__ == "__main__":
    main()
