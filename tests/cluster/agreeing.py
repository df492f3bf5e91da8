"""One of two processes that meet mistakes in turn: prints what `agree` raises on it, a line for each."""

from crate_graph.cluster.groups import agree, process_group
from crate_graph.cluster.ranks import discover
from crate_graph.errors import RunFailed, UserError

CASES = (  # what the block raises on rank 0, on rank 1
    (None, None),
    (None, RunFailed("the disk of one is gone")),
    (UserError("a file of zero is missing"), None),
    (UserError("zero"), RunFailed("one")),
    (None, None),
)


def heard(own):
    try:
        with agree(ranks):
            if own is not None:
                raise own
    except (UserError, RunFailed) as error:
        return f"{type(error).__name__}: {error}"
    return "agreed"


ranks = discover()
with process_group(ranks):
    for case in CASES:
        print(heard(case[ranks.rank]))
