"""Environment variables that lead NCCL and gloo over each kind of network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Network:
    what: str
    variables: tuple[Variable, ...]


# gloo takes names only, no pattern: the interface of the default route, unless INTERFACE says another.
_INTERFACE = "$INTERFACE"
_NO_BRIDGES = "^lo,docker,virbr"  # a leading ^ leaves out what begins so

_GLOO = Variable("GLOO_SOCKET_IFNAME", _INTERFACE, "gloo would take the address of the host's name, often loopback")
_WARN = Variable("NCCL_DEBUG", "WARN", "INFO tells which network NCCL chose; look for NET/IB, NET/OFI or NET/Socket")

NETWORKS = {
    "infiniband": Network(
        "NCCL over InfiniBand or RoCE",
        (
            Variable("NCCL_IB_HCA", "mlx5", "adapters whose names begin so; an exact list is =mlx5_0,mlx5_1"),
            Variable("NCCL_IB_TIMEOUT", "22", "a link that flaps for some seconds does not end the run"),
            Variable("NCCL_IB_RETRY_CNT", "7", "the most that the hardware knows"),
            Variable("NCCL_SOCKET_IFNAME", _NO_BRIDGES, "the first handshake goes over TCP"),
            _GLOO,
            _WARN,
        ),
    ),
    "efa": Network(
        "NCCL over the Elastic Fabric Adapter of AWS, by the plugin aws-ofi-nccl",
        (
            Variable("FI_PROVIDER", "efa", "libfabric would fall back to TCP without a word"),
            Variable("FI_EFA_USE_HUGE_PAGE", "0", "huge pages and forked loader workers do not go together"),
            Variable("FI_EFA_FORK_SAFE", "1", "loader workers are forks"),
            Variable("NCCL_SOCKET_IFNAME", _NO_BRIDGES, "the first handshake goes over TCP"),
            _GLOO,
            _WARN,
        ),
    ),
    "tcp": Network(
        "NCCL over plain TCP",
        (
            Variable("NCCL_IB_DISABLE", "1", "an adapter without a cable is not tried"),
            Variable("NCCL_SOCKET_IFNAME", _INTERFACE, "NCCL would take every interface, bridges of containers too"),
            Variable("NCCL_SOCKET_NTHREADS", "4", "one thread does not fill a link of more than 10 Gbit/s"),
            Variable("NCCL_NSOCKS_PERTHREAD", "4", "nor does one connection"),
            _GLOO,
            _WARN,
        ),
    ),
    "gloo": Network(
        "gloo, for hosts without a GPU",
        (
            _GLOO,
            Variable("DS_ACCELERATOR", "cpu", "DeepSpeed would look for a GPU on every rank"),
        ),
    ),
}
