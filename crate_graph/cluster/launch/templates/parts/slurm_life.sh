# The journal outlives the job's restarts. It holds the lives of the job, and what the run said in each of them
# (crate_graph/cluster/journal.py).
journal=$PWD/slurm-$label.journal
export {{ journal_variable }}=$journal
[[ -n ${SLURM_RESTART_COUNT:-} ]] || : >"$journal"
echo "life ${SLURM_RESTART_COUNT:-0}" >>"$journal"

said() { awk -v word="$1" '/^life/ { found = 0 } $1 == word { found = 1 } END { exit !found }' "$journal"; }

failures() { # lives since the run last got on, this one included
  awk '/^life/ { n++ } /^start/ { if ($2 != at) n = 1; at = $2 } /^preempted/ { n = 0 } END { print n + 0 }' "$journal"
}

again='' srun=''
# shellcheck disable=SC2329 # the trap calls it
pass_on() {
  again=1
  until said start || ! kill -0 "$srun" 2>/dev/null; do sleep 1; done # before, the workers would not hear it
  kill -USR1 "$srun" 2>/dev/null || :
}
trap pass_on USR1
trap : TERM # Slurm signals the step as well; the run gets time to save

"${step[@]}" &
srun=$!
while :; do
  if wait "$srun"; then code=0; else code=$?; fi
  kill -0 "$srun" 2>/dev/null || break
done

if said mistake; then exit {{ exit_mistake }}; fi
if said finished || said stopped; then exit 0; fi
if said preempted; then
  again=1
elif ((code != 0)); then
  echo "{{ name }}: failure $(failures) of ${MAX_FAILURES:-3} since the run last got on" >&2
  if (($(failures) < ${MAX_FAILURES:-3})); then again=1; fi
fi
[[ -n $again ]] || exit "$code"
# A job that Slurm itself ends, because it was cancelled say, is no longer RUNNING.
if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  echo "{{ name }}: requeueing job $SLURM_JOB_ID" >&2
  trap - TERM
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this shell; an exit code now would count as the job's
fi
exit {{ exit_again }}
