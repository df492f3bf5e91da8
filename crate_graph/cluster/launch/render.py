"""Renders the launchers from templates/: what two of them share stands in one part, what they agree on in FACTS."""

from __future__ import annotations

from pathlib import Path

import jinja2

from crate_graph.cluster import journal
from crate_graph.cluster.launch.networks import NETWORKS
from crate_graph.errors import UserError
from crate_graph.whole_files import write_whole

# What the launchers agree on.
FACTS = {
    "port": 29500,
    "journal_variable": journal.VARIABLE,
    "signal_seconds": 300,  # a preempted run has so long to save
    "exit_mistake": 2,
    "exit_again": 75,  # EX_TEMPFAIL of sysexits.h: the run is whole and is to be started again
    "join_timeout": 600,  # seconds for all hosts to arrive
    "read_timeout": 45,  # seconds for the host where all meet to answer
    "ssh_seconds": 15,  # for a host to answer
    "networks": NETWORKS,
}
SCRIPTS = (
    "preflight.sh",
    "torchrun.sh",
    "slurm.sbatch",
    "slurm_array.sbatch",
    "deepspeed_hostfile.sh",
    "accelerate.sh",
)
MANIFESTS = ("kubernetes/indexed_job.yaml", "kubernetes/pytorchjob.yaml")
SETTINGS = ("accelerate.yaml",)


def render_all() -> dict[str, str]:
    """Text of every rendered file, by its path below launch/."""
    files = (*SCRIPTS, *MANIFESTS, *SETTINGS)
    rendered = {file: _render(file, name=Path(file).name) for file in files}
    return rendered | {f"env/{name}.sh": _render("env/network.sh", name=name) for name in NETWORKS}


def write_all(folder: Path) -> list[Path]:
    """Write every launcher below `folder`, scripts so that they can be started; returns those that changed.

    Each takes the old one's place whole: a shell that runs the old one reads it to its end.

    Raises:
        UserError: the folder cannot be written.
    """
    changed = []
    try:
        for file, text in render_all().items():
            path = folder / file
            if path.exists() and path.read_text() == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text, mode=0o755 if file in SCRIPTS else 0o644)
            changed.append(path)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    return changed


def _render(template: str, **names: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        undefined=jinja2.StrictUndefined,
        comment_start_string="{##",  # `{#` is shell: ${#words[@]}
        comment_end_string="##}",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(FACTS, **names)
