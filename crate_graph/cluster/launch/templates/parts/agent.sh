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
trap pass_on TERM USR1
trap 'kill -INT "$agent" 2>/dev/null || :' INT
while :; do
  if wait "$agent"; then code=0; else code=$?; fi
  kill -0 "$agent" 2>/dev/null || break
done
# torchrun makes 1 of every exit code; what happened stands in the journal.
outcome=$(tail -n 1 "$journal")
rm -f "$journal"
case $outcome in
  preempted) again=1 ;;
  mistake) exit {{ exit_mistake }} ;;
esac
if [[ -n $again ]]; then exit {{ exit_again }}; fi
{% if exit_failure is defined %}
if ((code)); then exit {{ exit_failure }}; fi
exit 0
{% else %}
exit "$code"
{% endif %}
