# shellcheck shell=bash
# NCCL over plain TCP. Source it on every host, or let a launcher do so: NETWORK=tcp.
# What is set already stays.
INTERFACE=${INTERFACE:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)} # of the default route
if [[ -z $INTERFACE ]]; then
  echo 'launch/env/tcp.sh: error: no default route; set INTERFACE to the network interface of the run' >&2
  return 2
fi

# An adapter without a cable is not tried.
export NCCL_IB_DISABLE="${NCCL_IB_DISABLE:-1}"

# NCCL would take every interface, bridges of containers too.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$INTERFACE}"

# One thread does not fill a link of more than 10 Gbit/s.
export NCCL_SOCKET_NTHREADS="${NCCL_SOCKET_NTHREADS:-4}"

# Nor does one connection.
export NCCL_NSOCKS_PERTHREAD="${NCCL_NSOCKS_PERTHREAD:-4}"

# Gloo would take the address of the host's name, often loopback.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$INTERFACE}"

# INFO tells which network NCCL chose; look for NET/IB, NET/OFI or NET/Socket.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
