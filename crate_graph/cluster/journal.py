"""What a run tells the launcher that waits for it: a file that gains a line when it starts and when it ends.

torchrun makes 1 of every exit code, so this is how a launcher tells a mistake from a failure, and a run that is to go
on from one that is over. A launcher names the file by CRATE_GRAPH_JOURNAL; without it nothing is written.

    start STEP    preempted    stopped    finished    mistake    failed
"""

from __future__ import annotations

import os

from crate_graph.cluster.ranks import discover
from crate_graph.errors import UserError

VARIABLE = "CRATE_GRAPH_JOURNAL"


def note(line: str) -> None:
    """Append a line; of the processes of one host the first does."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        first_of_host = discover().local_rank == 0
    except UserError:  # the mistake that is being noted
        first_of_host = True
    if first_of_host:
        with open(path, "a") as journal:
            journal.write(f"{line}\n")
