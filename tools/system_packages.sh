# shellcheck shell=bash
# What tests of schedulers, of many hosts and of reports need beyond Python. Source it and call
# `install_system_packages`: it asks apt-get where that can be; elsewhere those tests are skipped, and say what they lack.

install_system_packages() {
  local program package wanted=()
  while read -r program package; do
    PATH=$PATH:/usr/sbin type -P "$program" >/dev/null || wanted+=("$package")
  done <<'PACKAGES'
slurmctld slurm-wlm
munged munge
ssh openssh-client
pdsh pdsh
ip iproute2
chromium chromium
PACKAGES
  if [[ ${#wanted[@]} == 0 ]]; then return; fi
  if [[ $(id -u) != 0 ]] || ! type -P apt-get >/dev/null; then
    printf 'Not installed, so that some tests are skipped: %s\n' "${wanted[*]}" >&2
    return
  fi
  printf 'Installing %s for the tests.\n' "${wanted[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  local get=(timeout 300 apt-get -o Acquire::Retries=1 -o Acquire::http::Timeout=20)
  if ! { "${get[@]}" update && "${get[@]}" install -y --no-install-recommends "${wanted[@]}"; } >/dev/null 2>&1; then
    printf 'apt-get could not install them, so that some tests are skipped.\n' >&2
  fi
}
