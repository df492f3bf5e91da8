"""Started by test_zero.py: measures engines and ZeRO stages in turn, on two processes of which one forks the other.

Both have imported everything by then; torchrun would import it three times.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from pathlib import Path

import crate_graph.engine.deepspeed  # noqa: F401
from crate_graph.cluster.groups import process_group
from crate_graph.cluster.ranks import discover
from crate_graph.config import load_recipe
from crate_graph.planning.measure import measure_in_group


def main(folder: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = os.fork()
    rank = "0" if other else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = discover()
    with process_group(ranks):
        for recipe in sorted(Path(folder).glob("*.yaml")):
            gc.freeze()  # what is there already need not be looked through for tensors
            found = measure_in_group(load_recipe(recipe), ranks, steps=1, rates=False)
            if ranks.is_main:
                recipe.with_suffix(".json").write_text(json.dumps(found))
    if other and os.waitpid(other, 0)[1]:
        sys.exit("the other process failed")


if __name__ == "__main__":
    main(sys.argv[1])
