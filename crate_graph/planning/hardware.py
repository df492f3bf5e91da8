"""Devices and networks that a run may be planned for, with the source of each figure.

"datasheet": printed by the vendor. Rates are those without sparsity. "assumed": ours; `Assumptions` holds what nobody
prints, and each of its figures can be changed on the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from crate_graph.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU, or the CPU at hand."""

    memory: float  # bytes
    bandwidth: float  # bytes/s of its memory
    half: float  # FLOP/s of matrix products in bf16 or fp16, dense
    tf32: float  # FLOP/s of convolutions in fp32, which cuDNN runs in TF32 where the device has it
    single: float  # FLOP/s of matrix products in fp32, which PyTorch does not run in TF32 by default
    link: float  # bytes/s, one way, to the other GPUs of its node
    network: str  # what nodes of such GPUs are usually joined by
    source: str
    bf16: bool = True  # whether `half` holds for bf16


@dataclass(frozen=True)
class Network:
    """What joins nodes. `per_gpu`: each GPU has a port of its own; otherwise the GPUs of a node share one."""

    rate: float  # bytes/s of one port, one way
    per_gpu: bool
    latency: float  # seconds from GPU to GPU, assumed
    source: str


@dataclass(frozen=True)
class Assumptions:
    """What no datasheet says. Shares of a peak are what large kernels reach in practice."""

    utilisation: float = 0.6  # of peak FLOP/s, by one matrix product or convolution
    memory_utilisation: float = 0.75  # of peak memory bandwidth, by one operation
    network_utilisation: float = 0.8  # of line rate, by a large collective
    kernel_seconds: float = 3e-6  # least time of one operation on the device
    host_seconds: float = (
        8e-6  # time that Python and PyTorch take to start one operation; the device waits if it is done
    )
    usable_memory: float = 0.9  # of the device; the rest is CUDA context, NCCL, workspaces and fragmentation
    disk_rate: float = 1e9  # bytes/s that one process writes to the run folder, and keeps up
    host_copy_rate: float = 10e9  # bytes/s from the device to the host


def _tera(number: float) -> float:
    return number * 1e12


def _giga(number: float) -> float:
    return number * 1e9


DEVICES: dict[str, Device] = {
    "b200": Device(
        *(180 * GIB, _tera(7.7), _tera(2250), _tera(1100), _tera(75), _giga(900), "ndr"),
        source="datasheet NVIDIA HGX B200, an eighth of the board",
    ),
    "h200": Device(
        *(141 * GIB, _tera(4.8), _tera(989), _tera(494), _tera(67), _giga(450), "ndr"),
        source="datasheet NVIDIA H200 SXM",
    ),
    "h100": Device(
        *(80 * GIB, _tera(3.35), _tera(989), _tera(494), _tera(67), _giga(450), "ndr"),
        source="datasheet NVIDIA H100 SXM",
    ),
    "h100-pcie": Device(
        *(80 * GIB, _tera(2.0), _tera(756), _tera(378), _tera(51), _giga(64), "hdr"),
        source="datasheet NVIDIA H100 PCIe, without NVLink bridges",
    ),
    "a100-80g": Device(
        *(80 * GIB, _tera(2.039), _tera(312), _tera(156), _tera(19.5), _giga(300), "hdr"),
        source="datasheet NVIDIA A100 80GB SXM",
    ),
    "a100-40g": Device(
        *(40 * GIB, _tera(1.555), _tera(312), _tera(156), _tera(19.5), _giga(300), "hdr"),
        source="datasheet NVIDIA A100 40GB SXM",
    ),
    "l40s": Device(
        *(48 * GIB, _tera(0.864), _tera(362), _tera(183), _tera(91.6), _giga(32), "100gbe"),
        source="datasheet NVIDIA L40S, PCIe 4.0 x16",
    ),
    "l4": Device(
        *(24 * GIB, _tera(0.3), _tera(121), _tera(60), _tera(30.3), _giga(32), "100gbe"),
        source="datasheet NVIDIA L4, PCIe 4.0 x16",
    ),
    "a10": Device(
        *(24 * GIB, _tera(0.6), _tera(125), _tera(62.5), _tera(31.2), _giga(32), "100gbe"),
        source="datasheet NVIDIA A10, PCIe 4.0 x16",
    ),
    "v100-32g": Device(
        *(32 * GIB, _tera(0.9), _tera(125), _tera(15.7), _tera(15.7), _giga(150), "100gbe"),
        source="datasheet NVIDIA V100 32GB SXM2, fp16 only",
        bf16=False,
    ),
}

NETWORKS: dict[str, Network] = {
    "ndr": Network(_giga(50), True, 5e-6, "datasheet NVIDIA ConnectX-7: 400 Gb/s a port, one port per GPU assumed"),
    "hdr": Network(_giga(25), True, 5e-6, "datasheet NVIDIA ConnectX-6: 200 Gb/s a port, one port per GPU assumed"),
    "efa": Network(_giga(50), True, 15e-6, "datasheet AWS EC2 p5.48xlarge: 3,200 Gb/s per node of 8 GPUs"),
    "efa-p4d": Network(_giga(6.25), True, 15e-6, "datasheet AWS EC2 p4d.24xlarge: 400 Gb/s per node of 8 GPUs"),
    "100gbe": Network(_giga(12.5), False, 30e-6, "line rate of 100 Gb/s Ethernet, one port per node assumed"),
    "25gbe": Network(_giga(3.125), False, 30e-6, "line rate of 25 Gb/s Ethernet, one port per node assumed"),
    "10gbe": Network(_giga(1.25), False, 50e-6, "line rate of 10 Gb/s Ethernet, one port per node assumed"),
}

Entry = TypeVar("Entry")


def find_device(name: str) -> Device:
    """The device of that name. Raises UserError naming those that are known."""
    return _find(name, DEVICES, "--device")


def find_network(name: str) -> Network:
    """Likewise."""
    return _find(name, NETWORKS, "--network")


def _find(name: str, known: Mapping[str, Entry], option: str) -> Entry:
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? known" if near else "known"
    raise UserError(f"{option} {name}: unknown; {hint}: {', '.join(known)}")
