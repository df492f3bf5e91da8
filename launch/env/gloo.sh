# shellcheck shell=bash
# gloo, for hosts without a GPU. Source it on every host, or let a launcher do so: NETWORK=gloo.
# What is set already stays.
INTERFACE=${INTERFACE:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)} # of the default route
if [[ -z $INTERFACE ]]; then
  echo 'launch/env/gloo.sh: error: no default route; set INTERFACE to the network interface of the run' >&2
  return 2
fi

# Gloo would take the address of the host's name, often loopback.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$INTERFACE}"

# DeepSpeed would look for a GPU on every rank.
export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
