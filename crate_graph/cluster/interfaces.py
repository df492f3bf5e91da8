"""Network interfaces of this host, and which of them gloo and NCCL were told to use."""

from __future__ import annotations

import os
import socket
from contextlib import closing

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interfaces() -> dict[str, list[str]]:
    """Addresses (IPv4 and IPv6) of each interface that is up."""
    up = {name for name, about in psutil.net_if_stats().items() if about.isup}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [each.address.partition("%")[0] for each in addresses if each.family in families]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def asked_for() -> dict[str, str]:
    """The variables that name interfaces, where they are set."""
    return {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}


def fitting(variable: str, value: str, names: list[str]) -> list[str]:
    """Which of the interfaces `names` a variable means: gloo takes names; NCCL beginnings, `=` names, and `^` not."""
    if variable == "GLOO_SOCKET_IFNAME":
        return [name for name in names if name in value.split(",")]
    mark = value[0] if value[0] in "^=" else ""
    wanted = value.removeprefix("^").removeprefix("=").split(",")
    exact = "=" in value[:2]

    def means(name: str) -> bool:
        return name in wanted if exact else name.startswith(tuple(wanted))

    return [name for name in names if means(name) != (mark == "^")]


def address_towards(host: str) -> str:
    """The address of this host from which `host` is reached. Raises OSError: the name is not known, or no way there."""
    family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        probe.connect(address)  # nothing is sent
        return probe.getsockname()[0]
