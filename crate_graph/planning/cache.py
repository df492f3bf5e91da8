"""What the cache of remote shards takes on each host, and what the network brings to it."""

from __future__ import annotations

import numpy as np

from crate_graph.data.outlook import Outlook
from crate_graph.data.plan import plan_epoch
from crate_graph.planning.contradictions import Finding
from crate_graph.planning.given import Given
from crate_graph.planning.readers import readers
from crate_graph.planning.report import Figure, Section

_LOOKS = 8  # moments of an epoch at which shards in use are counted


def cache_section(given: Given) -> tuple[Section, list[Finding]]:
    """Of a data set at an address. Sizes are those of the training split; that of evaluation comes on top."""
    data, split, nodes = given.recipe.data, given.split, given.cluster.nodes
    limit = int(data.cache.gigabytes * 1e9)
    in_use = shards_in_use(given)
    largest = None if split.bytes is None or not split.shards else -(-split.bytes // split.shards)
    if split.shard_bytes:
        largest = max(split.shard_bytes)
    held = None if in_use is None or largest is None else in_use * largest
    taken = None if split.bytes is None else min(split.bytes, limit)
    again = None if split.bytes is None else 0 if split.bytes <= limit else split.bytes // nodes
    unknown = "" if split.bytes else "; dataset.yaml has no bytes"
    whole = "each host comes to need the whole split, since every epoch deals the shards anew"
    figures = [
        Figure("shards at", split.remote, "", "data.root, or the address of data.dataset"),
        Figure("folder", data.cache.folder, "", "data.cache.folder, on each host; shared by its processes"),
        Figure("limit", limit, "B", f"data.cache.gigabytes={data.cache.gigabytes:g}, of 10^9 bytes"),
        Figure("training split", split.bytes, "B", f"{whole}{unknown}"),
        Figure("disk per node", taken, "B", f"the smaller of the two{unknown}"),
        Figure(
            "in use per node",
            held,
            "B",
            f"at most: {in_use} shards of {largest / 1e6:,.3g} MB, data.remote.read_ahead={data.remote.read_ahead}"
            if held is not None
            else "needs samples, shards, bytes and slots that divide",
        ),
        Figure("fetched again per node", again, "B", f"at most, in each epoch after the first ones{unknown}"),
    ]
    return Section("cache of remote shards", figures), _findings(given, limit, held)


def shards_in_use(given: Given) -> int | None:
    """The most shards that the readers of one host hold at once, by the code that fetches them; None: not known."""
    data, split, cluster = given.recipe.data, given.split, given.cluster
    sizes, batch = split.shard_samples, given.recipe.batch.global_batch
    if sizes is None or sum(sizes) < batch or batch % data.slots or data.slots % readers(data, cluster.world):
        return None
    plan = plan_epoch(
        sizes, seed=given.recipe.seed, epoch=0, slots=data.slots, global_batch=batch, block=data.shuffle_block
    )
    counts = np.asarray(sizes, dtype=np.int64)
    outlook = Outlook(np.cumsum(counts) - counts, data.shuffle_block, data.remote.read_ahead)
    each = data.slots // cluster.nodes
    steps = sorted({step * plan.steps // _LOOKS for step in range(_LOOKS)})
    return max(
        len(outlook.shards(plan, range(node * each, (node + 1) * each), step))
        for node in range(min(cluster.nodes, 4))  # they differ by a shard or two
        for step in steps
    )


def _findings(given: Given, limit: int, held: int | None) -> list[Finding]:
    data, split = given.recipe.data, given.split
    found = []
    if split.unread:
        found.append(Finding(False, f"{split.unread}; planned from {split.source}"))
    if held is not None and held > limit:
        found.append(
            Finding(
                False,
                f"data.cache.gigabytes={data.cache.gigabytes:g} is less than the {held / 1e9:.3g} GB of shards in use "
                f"on a host at once, so the cache outgrows it; set it to {held / 1e9:.3g} or more",
            )
        )
    elif split.bytes is not None and split.bytes > limit:
        found.append(
            Finding(
                False,
                f"data.cache.gigabytes={data.cache.gigabytes:g} holds {limit / split.bytes:.0%} of the training split, "
                f"so shards are fetched again each epoch; with {split.bytes / 1e9:.3g} they are fetched once",
            )
        )
    return found
