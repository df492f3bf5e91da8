# The shell passes signals on: SIGTERM and SIGUSR1 to the workers, as a request to save and stop.
journal=$(mktemp)
export {{ journal_variable }}=$journal
again=''
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  if grep -q '^start' "$journal"; then
    # shellcheck disable=SC2046
    kill -USR1 $(cat "/proc/$agent/task/$agent/children") 2>/dev/null || :
  else
    again=1
    kill -INT "$agent" 2>/dev/null || : # nothing is trained yet
  fi
}
set -m # else the agent would ignore Ctrl-C
bash -c 'trap "" TERM USR1; exec "$@"' agent "${command[@]}" &
agent=$!

# An agent that asks a host in vain, because the link to it is cut, waits for ever and does not see its workers end.
worker_ended() {
  local worker workers=()
  read -r -a workers <"/proc/$agent/task/$agent/children"
  for worker in "${workers[@]}"; do
    if grep -q '^State:.*zombie' "/proc/$worker/status"; then return; fi
  done
  return 1
}
watch_agent() {
  local unseen=0
  while sleep 5 && kill -0 "$agent"; do
    if worker_ended; then ((unseen += 5)); else unseen=0; fi
    if ((unseen >= {{ read_timeout }})); then
      echo unreachable >>"$journal"
      kill -KILL "$agent"
    fi
  done
}
watch_agent </dev/null >/dev/null 2>&1 &
guard=$!
disown "$guard" # its end is no news

trap pass_on TERM USR1
trap 'kill -INT "$agent" 2>/dev/null || :' INT
while :; do
  if wait "$agent"; then code=0; else code=$?; fi
  kill -0 "$agent" 2>/dev/null || break
done
kill -- "-$guard" 2>/dev/null || :
# torchrun makes 1 of every exit code; what happened stands in the journal.
outcome=$(tail -n 1 "$journal")
rm -f "$journal"
case $outcome in
  preempted) again=1 ;;
  unreachable)
    echo "{{ name }}: failed: a process has ended, and the host where all meet does not answer; start the same line again" >&2
    code=1
    ;;
  mistake) exit {{ exit_mistake }} ;;
esac
if [[ -n $again ]]; then exit {{ exit_again }}; fi
{% if exit_failure is defined %}
if ((code)); then exit {{ exit_failure }}; fi
exit 0
{% else %}
exit "$code"
{% endif %}
