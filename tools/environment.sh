# shellcheck shell=bash
# Makes .venv with this package in it. Source it, then call `set_up EXTRA`, with an extra of pyproject.toml or "".
# PYTHON names the interpreter to use; print_only=1 shows the commands instead of running them.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/set-up-done

fail() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

step() {
  if [[ -n ${print_only:-} ]]; then
    local shown
    printf -v shown ' %q' "$@"
    printf '%s\n' "${shown# }"
  else
    "$@"
  fi
}

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if is_recent "$candidate"; then
      "$candidate" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$candidate cannot make a virtual environment; install it: apt-get install $("$candidate" -c \
          'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")')"
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "${PYTHON:+PYTHON=$PYTHON is not a working Python 3.10 or newer; }set PYTHON to a Python 3.10 or newer"
}

# What an installation depends on: the two files, and the place, which an editable installation remembers.
fingerprint() {
  { printf '%s\n' "$root" && cat "$root/pyproject.toml" "$root/tools/constraints.txt"; } | sha256sum | cut -d ' ' -f 1
}

# The stamp is written last, so an interrupted installation is done again. One made for the tests serves every use.
is_set_up() {
  local extra=$1 done_fingerprint done_extra
  [[ -f $stamp ]] && read -r done_fingerprint done_extra <"$stamp"
  [[ ${done_fingerprint:-} == "$(fingerprint)" && (-z $extra || ${done_extra:-} == "$extra") ]]
}

install() {
  local extra=$1 python quiet=()
  [[ -t 1 ]] || quiet=(--quiet)
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    step "$python" -m venv --clear "$venv"
  elif ! is_recent "$venv/bin/python"; then
    fail "$venv holds a Python older than 3.10; remove that folder and start again"
  elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    step "$venv/bin/python" -m ensurepip
  fi
  [[ -n ${print_only:-} ]] || rm -f "$stamp"
  step "$venv/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
    -c "$root/tools/constraints.txt" -e "$root${extra:+[$extra]}"
  [[ -n ${print_only:-} ]] || printf '%s %s\n' "$(fingerprint)" "$extra" >"$stamp"
}

set_up() {
  local extra=$1
  if is_set_up "$extra"; then return; fi
  if [[ -n ${print_only:-} ]]; then
    install "$extra"
    return
  fi
  (
    flock 9
    if is_set_up "$extra"; then exit; fi
    printf 'Setting up %s: about 6 GB, some minutes.\n' "$venv" >&2
    install "$extra"
  ) 9>"$root/.venv.lock"
}
