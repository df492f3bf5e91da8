# shellcheck shell=bash
# NCCL over the Elastic Fabric Adapter of AWS, by the plugin aws-ofi-nccl. Source it on every host, or let a launcher do so: NETWORK=efa.
# What is set already stays.
INTERFACE=${INTERFACE:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)} # of the default route
if [[ -z $INTERFACE ]]; then
  echo 'launch/env/efa.sh: error: no default route; set INTERFACE to the network interface of the run' >&2
  return 2
fi

# Libfabric would fall back to TCP without a word.
export FI_PROVIDER="${FI_PROVIDER:-efa}"

# Huge pages and forked loader workers do not go together.
export FI_EFA_USE_HUGE_PAGE="${FI_EFA_USE_HUGE_PAGE:-0}"

# Loader workers are forks.
export FI_EFA_FORK_SAFE="${FI_EFA_FORK_SAFE:-1}"

# The first handshake goes over TCP.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker,virbr}"

# Gloo would take the address of the host's name, often loopback.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$INTERFACE}"

# INFO tells which network NCCL chose; look for NET/IB, NET/OFI or NET/Socket.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
