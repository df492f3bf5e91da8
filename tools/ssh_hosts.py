"""Real ssh daemons, with keys of their own, for the length of a block."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Daemon:
    """Where one listens, and what starts it there."""

    address: str
    port: str
    starter: Callable[..., subprocess.Popen] = subprocess.Popen


def missing() -> str | None:
    """Why deepspeed_hostfile.sh cannot be tried here, if so."""
    if os.geteuid() != 0 or _sshd() is None or shutil.which("pdsh") is None:
        return "needs root, and apt-get install openssh-server pdsh"
    return None


@contextmanager
def ssh_hosts(folder: Path, daemons: Mapping[str, Daemon]) -> Iterator[Path]:
    """An sshd for each host; yields the ssh configuration that knows them by their names."""
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with ExitStack() as stack:
        for name, daemon in daemons.items():
            process = daemon.starter(_command(folder, name, daemon))
            stack.callback(process.wait)
            stack.callback(process.terminate)
        (folder / "config").write_text("".join(_alias(folder, *item) for item in daemons.items()))
        yield folder / "config"


def _sshd() -> str | None:
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


def _command(folder: Path, name: str, daemon: Daemon) -> list[str]:
    options = {
        "ListenAddress": f"{daemon.address}:{daemon.port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    return [_sshd(), "-D", "-f", "/dev/null", "-E", str(folder / f"{name}.log"), *words]


def _alias(folder: Path, name: str, daemon: Daemon) -> str:
    return (
        f"Host {name}\n  HostName {daemon.address}\n  Port {daemon.port}\n  User root\n"
        f"  IdentityFile {folder / 'user'}\n  StrictHostKeyChecking no\n  UserKnownHostsFile {folder / 'known_hosts'}\n"
    )
