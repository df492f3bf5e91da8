"""Which way the processes of a run would reach each other."""

from __future__ import annotations

import ipaddress
import socket

from crate_graph.cluster.interfaces import address_towards, asked_for, fitting, interfaces
from crate_graph.doctor.check import Check


def check_network(master: str | None, hosts: int) -> list[Check]:
    """Interfaces, the one towards `master` (None: a run of one process), and where the name of this host leads."""
    here = interfaces()
    shown = ", ".join(f"{name} {addresses[0]}" for name, addresses in here.items() if addresses)
    for variable, value in asked_for().items():
        if not fitting(variable, value, list(here)):
            return [Check("network", "failed", f"{variable}={value} fits none of: {shown}", f"set {variable} to one")]
    target = master or socket.gethostname()
    try:
        address = address_towards(target)
    except OSError as error:
        found, remedy = f"{target} cannot be reached: {error.strerror}; interfaces: {shown}", "put it into /etc/hosts"
        return [Check("network", "failed" if master else "warning", found, f"{remedy}, or set MASTER_ADDR")]
    interface = next((name for name, addresses in here.items() if address in addresses), "no interface")
    found = f"{shown}; {target} is reached by {interface} ({address})"
    return [_judge_loopback(found, address, interface, hosts)]


def _judge_loopback(found: str, address: str, interface: str, hosts: int) -> Check:
    """gloo listens at the address of the host's name unless it is told an interface; on loopback none hears it."""
    name = socket.gethostname()
    told = asked_for()
    if told:
        found += "; " + ", ".join(f"{variable}={value}" for variable, value in told.items())
    try:
        of_name = socket.gethostbyname(name)
        loopback = ipaddress.ip_address(of_name).is_loopback
    except OSError:
        of_name, loopback = "no address", True
    if hosts == 1:
        return Check("network", "ok", found)  # its processes reach each other over loopback as well
    if "GLOO_SOCKET_IFNAME" in told or not loopback:
        if ipaddress.ip_address(address).is_loopback and "GLOO_SOCKET_IFNAME" not in told:
            return Check(
                "network", "failed", found, "MASTER_ADDR is a loopback address: name the first host by another"
            )
        return Check("network", "ok", found)
    found += f"; the name {name} means {of_name}"
    useful = interface if not ipaddress.ip_address(address).is_loopback else "the interface that leads to other hosts"
    remedy = f"set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to {useful} (NETWORK=tcp or gloo)"
    return Check("network", "failed", found, remedy)
