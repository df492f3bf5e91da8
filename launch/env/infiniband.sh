# shellcheck shell=bash
# NCCL over InfiniBand or RoCE. Source it on every host, or let a launcher do so: NETWORK=infiniband.
# What is set already stays.
INTERFACE=${INTERFACE:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)} # of the default route
if [[ -z $INTERFACE ]]; then
  echo 'launch/env/infiniband.sh: error: no default route; set INTERFACE to the network interface of the run' >&2
  return 2
fi

# Adapters whose names begin so; an exact list is =mlx5_0,mlx5_1.
export NCCL_IB_HCA="${NCCL_IB_HCA:-mlx5}"

# A link that flaps for some seconds does not end the run.
export NCCL_IB_TIMEOUT="${NCCL_IB_TIMEOUT:-22}"

# The most that the hardware knows.
export NCCL_IB_RETRY_CNT="${NCCL_IB_RETRY_CNT:-7}"

# The first handshake goes over TCP.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker,virbr}"

# Gloo would take the address of the host's name, often loopback.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$INTERFACE}"

# INFO tells which network NCCL chose; look for NET/IB, NET/OFI or NET/Socket.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
