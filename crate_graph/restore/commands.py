"""`crate-graph restore`: the command line over run.py."""

from __future__ import annotations

import argparse
import json
from typing import Any

RESTORE = """\
Restore pictures: demosaick, interpolate, denoise. Each result is written to a folder under the picture's name.

example:
  crate-graph restore NAME photo.png --degrade bayer:RGGB --compare --output out
  crate-graph restore NAME photo.dng --output out
  crate-graph restore runs/mine mosaic.tif --mosaic GRBG --output out

NAME|CHECKPOINT is the name of weights that ship with the package (crate-graph restore --list), a checkpoint or run
folder of a restoration recipe, or a file that crate-graph export --format safetensors wrote of one. Pictures are PNG,
TIFF (8 or 16 bit) and JPEG, and camera RAW with pip install 'crate-graph[raw]'."""


def add_parser(subparsers: Any) -> None:
    """Add the verb `restore` to the command line."""
    restore = subparsers.add_parser(
        "restore",
        help="restore pictures with a trained model",
        description=RESTORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restore.add_argument("--list", action=_List, nargs=0, help="name the weights that ship with the package, and exit")
    restore.add_argument("name", metavar="NAME|CHECKPOINT")
    restore.add_argument("photos", nargs="+", metavar="PHOTO")
    restore.add_argument("--output", required=True, type=_folder, metavar="DIR", help="folder of the results")
    given = restore.add_argument_group("what the pictures are (a full picture as it is, where nothing is said)")
    given.add_argument(
        "--degrade",
        metavar="HOW",
        help="degrade full pictures first, and judge the result by them: bayer:RGGB, decimate, random:0.25 or none",
    )
    given.add_argument("--noise", type=float, metavar="S", help="with --degrade: add Gaussian noise; white is 255")
    given.add_argument("--mosaic", metavar="PHASE", help="they are mosaics of one channel: RGGB, GRBG, GBRG or BGGR")
    given.add_argument("--scale", type=int, metavar="2", help="they are to be enlarged; only by 2")
    given.add_argument(
        "--sigma", type=float, metavar="S", help="noise that a noise-aware model is told of (that of --noise)"
    )
    restore.add_argument("--compare", action="store_true", help="also write NAME.compare.png: before, after, original")
    restore.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="restore in tiles of N x N pixels (512 for pictures over half a megapixel); 0: always whole",
    )
    restore.add_argument("--format", choices=("png", "tiff", "jpeg"), help="of the results (that of each picture)")
    restore.add_argument("--device", metavar="cpu|cuda", help="where to compute (the GPU where there is one)")
    restore.add_argument("--force", action="store_true", help="replace files that exist")
    restore.add_argument("--json", action="store_true", help="print the results as JSON")
    restore.set_defaults(run=_restore)


def _folder(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("name a folder; '.' is the one you are in")
    return text


class _List(argparse.Action):
    """Needs no other argument, like --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from crate_graph.tasks.build import describe
        from crate_graph.weights import list_weights, load_restorer

        for name in list_weights():
            restorer = load_restorer(name)
            print(f"{name}  {restorer.architecture}, {describe(restorer.degradation)}, {restorer.color}")
        parser.exit()


def _restore(args: argparse.Namespace) -> int:
    from crate_graph.restore.request import make_request
    from crate_graph.restore.run import restore

    results = restore(
        args.name,
        args.photos,
        args.output,
        make_request(args.degrade, args.noise, mosaic=args.mosaic, scale=args.scale, sigma=args.sigma),
        compare=args.compare,
        tile=args.tile,
        device=args.device,
        format=args.format and args.format.upper(),
        force=args.force,
        told=(lambda result: None) if args.json else (lambda result: print(_line(result), flush=True)),
    )
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


def _line(result: dict[str, Any]) -> str:
    line = f"{result['output']}  {result['width']} x {result['height']}, {result['seconds']:.1f} s"
    if "psnr" in result:
        similarity = "" if result["ssim"] is None else f", SSIM {result['ssim']:.4f}"
        line += f", {result['psnr']:.2f} dB (before {result['psnr_before']:.2f}){similarity}"
    return line + (f"; see {result['comparison']}" if "comparison" in result else "")
