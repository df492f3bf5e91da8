"""Write a folder of shipped weights, crate_graph/weights/NAME, from a checkpoint of a restoration recipe.

    python tools/ship_weights.py runs/demosaic_fast demosaic_fast \\
        --command "crate-graph train restoration/demosaic_fast" \\
        --data "photographs960, 865 photographs under CC0 and CC BY" \\
        --metric "Kodak, 24 pictures, PSNR and SSIM (8 bits, mean over the pictures)=... dB, ..."
"""

from __future__ import annotations

import argparse
import sys

from crate_graph.errors import UserError
from crate_graph.weights.ship import ship_weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint, or a run folder for its newest one")
    parser.add_argument("name", help="of the weights: small letters, digits and _")
    parser.add_argument("--command", required=True, help="that trained it")
    parser.add_argument("--data", required=True, help="what it was trained on, and its terms")
    parser.add_argument("--metric", action="append", default=[], metavar="WHAT=RESULT", help="once for each result")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights (Apache-2.0)")
    args = parser.parse_args()
    metrics = dict(metric.rsplit("=", 1) if "=" in metric else (metric, "") for metric in args.metric)
    try:
        folder = ship_weights(
            args.checkpoint, args.name, command=args.command, data=args.data, metrics=metrics, licence=args.licence
        )
    except UserError as error:
        print(f"ship_weights: error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
