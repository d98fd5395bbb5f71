# shellcheck shell=bash disable=SC1091,SC2034,SC2153
# What a manual glidein does, from its first line to its last. All it calls stands above.

set -u
umask 077
MASTER='' SENTINEL='' CHECKING='' WHY='' LEFT='' MADE=()
who_and_where
trap clean_up EXIT
trap 'leave_early "told to leave"' USR1
trap 'leave_early "Slurm takes the node back"' TERM
trap 'leave_early interrupted' INT
say "pilot $PILOT_ID on $NODE: resource $PILOT_RESOURCE"
billed_as "$PILOT_ACCOUNT" "$PILOT_QOS" "$PILOT_PARTITION"
how_long

# Before the start: the node's own checks first, then the worker-node environment, which may need what they look at.
own_directories
write_checks
run_checks 'checks/[0-4]*'
if [ -e "$PILOT_DIR/setup" ]; then
  # Not in a function: what the site's lines declare would be gone with it. Nor are they ours to hold to set -u.
  set +u
  . "$PILOT_DIR/setup" \
    || finish "$EXIT_SETUP_FAILED" "the last of the setup lines failed: $(tail -n 1 "$PILOT_DIR/setup")"
  set -u
fi
bring_executor

start_executor "$PILOT_EXECUTOR"
# Raw, a USR1 would end an executor that does not expect it, and leave what it runs behind.
trap 'leave "the end of the walltime is near"' USR1
trap 'leave "Slurm takes the node back"' TERM
trap 'leave interrupted' INT
start_sentinel $$
say "$PILOT_EXECUTOR runs until $(date -d "@$ENDS" +%FT%T) at most"
wait "$MASTER"
CODE=$?
! taken_back || leave "Slurm takes the node back"
finish "$CODE" "the executor ended by itself with code $CODE"
