"""Two hosts on this one: namespaces of the kernel, joined by a switch whose links can be cut.

    with TwoHosts() as (nodea, nodeb):
        nodea.start(["ping", "nodeb"])
        nodeb.unplug()

Each has a name, an address, a default route, a hosts file, processes and a /dev/shm of its own, and sees the files of
this host, as the hosts of a cluster see its disk. A host is held by one process, its first, which ends when this
process does, however that comes about; with it the kernel ends all others of the host and takes its network away.
Nothing is written outside of the namespaces, so many pairs can be there at once.

Needs root, and `apt-get install iproute2`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NAMES = ("nodea", "nodeb")
SUBNET = "10.77.0"
_OWN = ("--net", "--uts", "--mount", "--pid")
_HOLD = """
{set_up}
echo ready
read -r || : # until the process that reads "ready" has ended
"""
# In a /proc of its own. The file of hosts lies in a file system of its own too, so nothing is left of it.
_SET_UP_HOST = """
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs tmpfs /dev/shm
echo "$2" >/dev/shm/hosts
mount --bind /dev/shm/hosts /etc/hosts
"""
_TRY = "ip link add name switch type bridge && ip link add name one type veth peer name two"


def missing() -> str | None:
    """Why no hosts can be made here, if so."""
    if os.geteuid() != 0:
        return "hosts made of namespaces need root"
    absent = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install iproute2 util-linux)"
    tried = subprocess.run(["unshare", *_OWN, "--fork", "sh", "-c", _TRY], capture_output=True, text=True)
    return f"no namespaces can be made here ({tried.stderr.strip()})" if tried.returncode else None


class TwoHosts:
    """Makes the hosts and their switch, for the length of a block."""

    def __enter__(self) -> tuple[Host, Host]:
        with ExitStack() as stack:
            switch = _Held("ip link add name switch type bridge\nip link set switch up", "--net", "--pid")
            stack.callback(switch.end)
            hosts = tuple(Host(switch, name, number) for number, name in enumerate(NAMES, start=1))
            for host in hosts:
                host.boot()
                stack.callback(host.lose_power)
            self._stack = stack.pop_all()
        return hosts

    def __exit__(self, *exception: object) -> None:
        self._stack.close()


class Host:
    """One of the hosts; `name` resolves to `address` on both."""

    def __init__(self, switch: _Held, name: str, number: int):
        self.name, self.address = name, f"{SUBNET}.{number}"
        self._switch, self._port, self._number = switch, f"port-{name}", number
        self._held: _Held | None = None

    def boot(self) -> None:
        names = "\n".join(f"{SUBNET}.{number} {name}" for number, name in enumerate(NAMES, start=1))
        own = ("--net", "--uts", "--mount", "--pid", "--mount-proc")
        self._held = _Held(_SET_UP_HOST, *own, arguments=(self.name, f"127.0.0.1 localhost\n{names}"))
        cable = ["link", "add", "name", self._port, "type", "veth", "peer", "name", "eth0"]
        card = ["address", f"02:00:00:00:00:{self._number:02x}", "netns", str(self._held.first)]  # it stays the same
        self._switch.ip(*cable, *card)
        self._switch.ip("link", "set", self._port, "master", "switch", "up")
        self._held.ip("link", "set", "lo", "up")
        self._held.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self._held.ip("link", "set", "eth0", "up")
        self._held.ip("route", "add", "default", "dev", "eth0")

    def unplug(self) -> None:
        """Cut the link: nothing passes in either direction, and nobody is told."""
        self._switch.ip("link", "set", self._port, "down")

    def plug(self) -> None:
        self._switch.ip("link", "set", self._port, "up")

    def lose_power(self) -> None:
        """All that runs on it is gone at once, and sends no farewell."""
        if self._held is not None:
            self._switch.ip("link", "delete", self._port)
            self._held.end()
            self._held = None

    def start(self, command: Sequence[str], *, cwd: Path | None = None, **settings: Any) -> subprocess.Popen:
        """As `subprocess.Popen`, on this host. What is returned waits for the process, and takes no signal to it."""
        inside = ["nsenter", f"--target={self._held.first}", *_OWN, "env", f"--chdir={cwd or Path.cwd()}"]
        return subprocess.Popen([*inside, *command], **settings)

    def processes(self) -> list[int]:
        """Process ids, as this host's outside knows them."""
        here = _namespace(self._held.first)
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _namespace(int(pid)) == here]


class _Held:
    """Namespaces, and the first process in them."""

    def __init__(self, set_up: str, *own: str, arguments: tuple[str, ...] = ()):
        script = _HOLD.format(set_up=set_up)
        self._process = subprocess.Popen(
            ["unshare", *own, "--fork", "bash", "-euc", script, "first", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if (said := self._process.stdout.readline()) != "ready\n":
            raise RuntimeError(f"a host cannot be made: {said}{self._process.communicate()[0]}")
        outside = self._process.pid
        self.first = int(Path(f"/proc/{outside}/task/{outside}/children").read_text())

    def ip(self, *words: str) -> None:
        command = ["nsenter", f"--target={self.first}", "--net", "ip", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended meanwhile
        return ""
