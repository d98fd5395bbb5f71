# shellcheck shell=bash disable=SC1091,SC2034,SC2153
# What a pilot does, from its first line to its last. All it calls stands above.

set -u
umask 077
MASTER='' SENTINEL='' WATCHER='' CHECKING='' JOINING='' WHY='' LEFT='' JOB_VARIABLES='' MADE=()
who_and_where
trap clean_up EXIT
trap 'leave_early "told to leave"' USR1
trap 'leave_early "Slurm takes the node back"' TERM
trap 'leave_early interrupted' INT
say "pilot $PILOT_ID on $NODE: resource $PILOT_RESOURCE"
billed_as "$PILOT_ACCOUNT" "$PILOT_QOS" "$PILOT_PARTITION"
how_long
what_slurm_gave

# Before it joins: the node's own checks first, then the worker-node environment, which may need what they look at.
own_directories
write_checks
run_checks 'checks/[0-4]*'
if [ -e "$PILOT_DIR/setup" ]; then
  # Not in a function: what the site's lines declare would be gone with it. Nor are they ours to hold to set -u.
  BEFORE_SETUP=$(export -p | sort)
  set +u
  . "$PILOT_DIR/setup" \
    || finish "$EXIT_SETUP_FAILED" "the last of the setup lines failed: $(tail -n 1 "$PILOT_DIR/setup")"
  set -u
  JOB_VARIABLES=$(set_since "$BEFORE_SETUP")
fi
bring_condor
configure_condor
# The last look before the start: a pilot that starts under a mark never joins.
look_for_marks || finish "$EXIT_NO_SHARED_DIR" "the shared directory $PILOT_SHARED_DIR cannot be seen from here"
! drained || finish "$EXIT_GOOD" "drained ($(drain_reason)) before it joined"

# -r is a last line of defence in whole minutes, rounded up so that PREEMPT comes first.
condor_master -f -r "$(((TO_DIE - STARTED) / 60 + 1))" &
MASTER=$! JOINING=yes
watch &
WATCHER=$!
trap 'leave TERM "the end of the walltime is near"' USR1
trap 'leave QUIT "Slurm takes the node back"' TERM
trap 'leave QUIT "interrupted"' INT
start_sentinel "$MASTER"
say "condor_master runs with $CPUS cpus and $MEMORY_MB MB until $(date -d "@$TO_DIE" +%FT%T)"
# A signal ends `wait` early: ask again until the master is really gone.
while :; do
  wait "$MASTER"
  CODE=$?
  kill -0 "$MASTER" 2> /dev/null || break
done
MASTER=''
! told_to_leave || finish "$EXIT_GOOD" "$WHY"
ended_by_itself "$CODE"
