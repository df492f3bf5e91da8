"""The verb `doctor`: each host examines itself, all of them the network between them; rank 0 has all findings."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from crate_graph.cluster.groups import gather, naming_a_lost_peer, process_group
from crate_graph.cluster.ranks import Ranks, discover
from crate_graph.config.schema import Recipe
from crate_graph.doctor.check import Check, failing
from crate_graph.doctor.host import examine_host
from crate_graph.doctor.network import check_network
from crate_graph.doctor.recipe import check_batches, check_shards, shared_bytes
from crate_graph.doctor.together import check_all_reduce, check_clocks
from crate_graph.errors import RunFailed, UserError


def examine(recipe: Recipe | None, run_dir: Path | None, say: Callable[[str], None]) -> list[Check]:
    """All findings, on every process of the run; `say` is told what is about to be examined.

    Raises:
        RunFailed: the processes did not meet; not on rank 0, where that is one of the findings.
    """
    ranks = discover()
    run_dir = run_dir or Path("runs", recipe.name if recipe else "")
    with ExitStack() as stack:
        if ranks.world > 1:
            try:
                stack.enter_context(process_group(ranks))
            except (UserError, RunFailed) as error:
                return _alone(recipe, run_dir, ranks, error, say)
        with naming_a_lost_peer():
            return _together(recipe, run_dir, ranks, say)


def _alone(
    recipe: Recipe | None, run_dir: Path, ranks: Ranks, error: UserError | RunFailed, say: Callable[[str], None]
) -> list[Check]:
    if not ranks.is_main:
        raise RunFailed(str(error)) from None
    found, _, remedy = str(error).rpartition("; ")
    met = Check("meeting", "failed", found, remedy, socket.gethostname())
    return [met, *_of_host(recipe, run_dir, ranks, 1, 1, say)]


def _together(recipe: Recipe | None, run_dir: Path, ranks: Ranks, say: Callable[[str], None]) -> list[Check]:
    hosts = gather(ranks, socket.gethostname())
    here, mine = hosts[ranks.rank], []
    if hosts.index(here) == ranks.rank:
        mine = _of_host(recipe, run_dir, ranks, hosts.count(here), len(set(hosts)), say)
    findings = [check for checks in gather(ranks, mine) for check in checks]
    if recipe is not None:
        findings += failing("batches", check_batches, recipe, ranks.world)
    if ranks.world > 1:
        places = ", ".join(f"{hosts.count(host)} on {host}" for host in dict.fromkeys(hosts))
        say("examining the network between the processes: clocks, all-reduce")
        findings.append(Check("meeting", "ok", f"{ranks.world} processes of equal versions: {places}"))
        findings += check_clocks(ranks, hosts)
        findings += check_all_reduce(ranks)
    return findings


def _of_host(
    recipe: Recipe | None, run_dir: Path, ranks: Ranks, processes: int, hosts: int, say: Callable[[str], None]
) -> list[Check]:
    """What this host finds of itself."""
    needed = None if recipe is None else shared_bytes(recipe, ranks.world, processes)
    looks = examine_host(run_dir, processes, needed)
    looks.append(("network", check_network, ranks.master[0] if ranks.master else None, hosts))
    if recipe is not None:
        looks.append(("shards", check_shards, recipe))
    say(f"examining {'this' if hosts == 1 else 'each'} host: {', '.join(name for name, *_ in looks)}")
    found = [check for name, look, *arguments in looks for check in failing(name, look, *arguments)]
    return [replace(check, host=socket.gethostname()) for check in found]
