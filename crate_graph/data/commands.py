"""`crate-graph shards make|index|verify|extract`: the command line over the files of those names."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from crate_graph.data.dataset import open_dataset
from crate_graph.data.extract import extract_samples
from crate_graph.data.make import index_shards, make_shards
from crate_graph.data.verify import verify_shards
from crate_graph.errors import UserError

LARGEST = 10**9  # of any number of the command line

MAKE = """\
Write a split of a data set as shards: plain tars with an index each, and a dataset.yaml.

example:
  crate-graph shards make ~/pets --output ~/shards/pets --split train
  crate-graph shards make ~/pets --output ~/shards/pets --split test

SOURCE is a folder (or an uncompressed tar of one) with SPLIT/CLASS/NAME.jpg or CLASS/NAME.jpg; any folder of images
with --labels (a text file, each line: PATH CLASS) or, where there are no classes, with --unlabelled; an IDX file of
images with --labels (IDX too); or shards.

For restoration, whole photographs, or squares of 64 pixels that are cut out of them:
  crate-graph shards make ~/photographs --output ~/shards/photographs --split train --unlabelled
  crate-graph shards make ~/photographs --output ~/shards/patches --split train --unlabelled --patch 64"""

INDEX = """\
Write the index of tars that already hold samples (NAME.jpg + NAME.cls, as webdataset groups them).

example:
  crate-graph shards index ~/shards/mine"""

VERIFY = """\
Check shards against their indexes, byte for byte; with --decode also every image and label.
Exit code 0: sound. 2: something is wrong, and it says which shard and sample.

example:
  crate-graph shards verify fashion_mnist --decode
  crate-graph shards verify https://example.org/shards/pets"""

EXTRACT = """\
Write the first samples of a split as ordinary image files, bytes unchanged.

example:
  crate-graph shards extract photo_crops --split test --samples 2 --output pictures
  crate-graph shards extract fashion_mnist --split train --samples 500 --by-class --output pictures

With --by-class the files are FOLDER/SPLIT/CLASS/NAME, as `shards make` and torchvision's ImageFolder take them. Of the
samples equally many are then of each class, here 50, unless a class has fewer. What a folder name cannot hold becomes _
(T-shirt/top: T-shirt_top); classes without names are numbers. Both readers number the classes anew, in the order of the
folders' names; `shards make --like DATASET` gives them their own numbers and names back."""


def add_parser(subparsers: Any) -> None:
    """Add the verb `shards` to the command line. Each command sets `run(args) -> exit code`."""
    shards = subparsers.add_parser(
        "shards",
        help="make, index, verify or unpack the shards of a data set",
        description="Make, index, verify or unpack shards.\n\nexample:\n  crate-graph shards verify fashion_mnist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = shards.add_subparsers(dest="shards_command", required=True, metavar="make|index|verify|extract")
    _add_make(_command(commands, "make", "write shards from images", MAKE))
    index = _command(commands, "index", "write the index of existing tars", INDEX)
    index.add_argument("paths", nargs="+", metavar="TAR|FOLDER")
    index.add_argument("--json", action="store_true", help="print what was indexed as JSON")
    index.set_defaults(run=_index)
    verify = _command(commands, "verify", "check shards against their indexes", VERIFY)
    verify.add_argument("target", metavar="DATASET|FOLDER|TAR|ADDRESS")
    verify.add_argument("--root", help="folder or address of the shards, where it is not that of dataset.yaml")
    verify.add_argument("--decode", action="store_true", help="decode every image and check every label of a data set")
    verify.add_argument("--json", action="store_true", help="print the findings as JSON")
    verify.set_defaults(run=_verify)
    extract = _command(commands, "extract", "write samples as image files", EXTRACT)
    extract.add_argument("dataset", metavar="DATASET")
    extract.add_argument("--root", help="folder or address of the shards, where it is not that of dataset.yaml")
    extract.add_argument("--split", default="test", help="name of the split (test)")
    extract.add_argument("--samples", type=_positive, metavar="N", help="how many in all, from the first on (all)")
    extract.add_argument(
        "--by-class",
        action="store_true",
        help="write FOLDER/SPLIT/CLASS/NAME; --samples N then takes equally many of each class",
    )
    extract.add_argument("--output", required=True, metavar="FOLDER", help="folder of the image files")
    extract.add_argument("--json", action="store_true", help="print the paths as JSON")
    extract.set_defaults(run=_extract)


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=summary, description=description, formatter_class=raw)


def _add_make(make: argparse.ArgumentParser) -> None:
    make.add_argument("source", metavar="SOURCE")
    make.add_argument("--output", required=True, metavar="FOLDER", help="folder of the shards and of dataset.yaml")
    make.add_argument("--split", required=True, help="name of the split, for instance train")
    make.add_argument(
        "--source-split", metavar="NAME", help="folder of the split in SOURCE, where it is called otherwise"
    )
    make.add_argument("--labels", metavar="FILE", help="labels, where folders do not say the class")
    make.add_argument("--unlabelled", action="store_true", help="there are no classes: take all images, at any depth")
    make.add_argument("--patch", type=_positive, metavar="N", help="cut the images into squares of N pixels, as PNG")
    make.add_argument("--stride", type=_positive, metavar="N", help="pixels from one patch to the next (--patch)")
    make.add_argument(
        "--samples", type=_positive, metavar="N", help="keep at most N samples, chosen at random by --seed"
    )
    make.add_argument("--like", metavar="DATASET", help="take name, classes, mean and so on from this data set")
    make.add_argument("--name", help="name of the data set (default: the folder's)")
    make.add_argument("--licence", help="terms of the images, for dataset.yaml")
    size = make.add_mutually_exclusive_group()
    size.add_argument("--shard-samples", type=_positive, default=1000, metavar="N", help="samples of a shard (1000)")
    size.add_argument("--shards", type=_positive, metavar="N", help="number of shards")
    make.add_argument("--per-class", type=_positive, metavar="N", help="keep only the first N samples of each class")
    make.add_argument("--seed", type=int, default=0, help="of the shuffle and of --samples (0)")
    make.add_argument("--force", action="store_true", help="replace the shards of this split")
    make.add_argument("--json", action="store_true", help="print what was written as JSON")
    make.set_defaults(run=_make)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 1 <= number <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to {LARGEST}")
    return number


def _shards(count: int) -> str:
    return f"{count} shard" + "s" * (count != 1)


def _make(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: a seed is not negative; choose 0 or more")
    about = open_dataset(args.like).description.model_dump(exclude={"splits"}) if args.like else {}
    about |= {field: value for field, value in (("name", args.name), ("licence", args.licence)) if value}
    made = make_shards(
        args.source,
        args.output,
        split=args.split,
        source_split=args.source_split,
        labels=args.labels,
        unlabelled=args.unlabelled,
        patch=args.patch,
        stride=args.stride,
        samples=args.samples,
        shard_samples=args.shard_samples,
        shards=args.shards,
        per_class=args.per_class,
        seed=args.seed,
        about=about,
        force=args.force,
    )
    samples, size = sum(shard.samples for shard in made.shards), sum(shard.bytes for shard in made.shards)
    if args.json:
        print(json.dumps({"dataset": str(made.file), "split": made.split, "samples": samples, "bytes": size}))
    else:
        print(f"{made.split}: {samples} samples in {_shards(len(made.shards))}, {size / 1e6:.1f} MB; see {made.file}")
    return 0


def _index(args: argparse.Namespace) -> int:
    shards = index_shards(args.paths)
    if args.json:
        print(json.dumps([{**asdict(shard), "path": str(shard.path)} for shard in shards]))
    else:
        print(f"indexed {_shards(len(shards))}, {sum(shard.samples for shard in shards)} samples")
    return 0


def _verify(args: argparse.Namespace) -> int:
    reports = verify_shards(args.target, root=args.root, decode=args.decode)
    bad = [report for report in reports if report.problems]
    if args.json:
        print(json.dumps({"sound": not bad, "shards": [asdict(report) for report in reports]}))
        return 2 if bad else 0
    for report in bad:
        for problem in report.problems:
            print(f"{report.shard}: {problem}")
    samples = sum(report.samples for report in reports)
    print(f"{_shards(len(reports))}, {samples} samples: {f'{_shards(len(bad))} not sound' if bad else 'all sound'}")
    return 2 if bad else 0


def _extract(args: argparse.Namespace) -> int:
    dataset = open_dataset(args.dataset, args.root)
    paths = extract_samples(dataset, args.split, args.output, args.samples, by_class=args.by_class)
    if args.json:
        print(json.dumps([str(path) for path in paths]))
    else:
        print(f"{len(paths)} images in {args.output}")
    return 0
