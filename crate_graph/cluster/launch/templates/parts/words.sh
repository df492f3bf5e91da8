fail() {
  printf '{{ name }}: error: %s\n' "$*" >&2
  exit {{ exit_mistake }}
}

show() {
  local shown
  printf -v shown ' %q' "$@"
  printf '%s\n' "${shown# }"
}

print_only='' words=()
for word in "$@"; do
  if [[ $word == --print ]]; then print_only=1; else words+=("$word"); fi
done
if [[ ${#words[@]} == 0 ]]; then
  sed -n '2,/^set/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
  exit {{ exit_mistake }}
fi
