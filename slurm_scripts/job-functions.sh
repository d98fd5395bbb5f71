# shellcheck shell=bash disable=SC2034,SC2317
# What every Slurm job of ours calls; put into its script as it stands. WHY says why this pilot ends.

say() { printf '%s %s\n' "$(date +%FT%T)" "$*"; }

# because REASON: why this pilot ends. The first reason is the reason; and what Slurm announced to the sentinel, with
# its time, came before anything that this script hears of it.
because() {
  [ -z "$WHY" ] || return 0
  WHY=$1
  if [ -s "$PILOT_DIR/announced" ]; then
    WHY="Slurm announced the end at $(cat "$PILOT_DIR/announced")"
    LEFT=$(date -d "$(cat "$PILOT_DIR/announced")" +%s)
  fi
}

# finish CODE REASON: the exit code that sacct keeps, and why. docs/pilot.md lists the codes.
finish() {
  trap '' TERM INT USR1
  because "$2"
  exit "$1"
}

# conclude CODE JOINED JOBS [EVICTED CORE_S LOST_CORE_S]: the last line of the log, which the controller reads
# (htcebridge/pilot/logs.py).
conclude() {
  say "htcebridge-outcome code=$1 joined=$2 jobs=$3${4:+ evicted=$4 core_s=$5 lost_core_s=$6}" \
    "reason=${WHY:-the script ended unexpectedly}"
}

# Sets who this pilot is and where it runs.
who_and_where() {
  PILOT_ID=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:?not inside a Slurm job}}
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || PILOT_ID=${PILOT_ID}_$SLURM_ARRAY_TASK_ID
  NODE=$(hostname -s)
  USER=$(id -un)
  HOME=$(getent passwd "$USER" | cut -d: -f6)
  export USER HOME LANG=C
  PILOT_DIR=$SCRATCH/htcebridge-$PILOT_ID
  JOB_DIR=$JOB_SCRATCH/htcebridge-$PILOT_ID
  export PILOT_ID PILOT_DIR SCRATCH JOB_SCRATCH
}

# billed_as ACCOUNT QOS PARTITION: end here if Slurm bills this job to something else. slurmdbd keeps accounts and
# QOSes in lower case; a cluster without accounting sets no variable to compare.
billed_as() {
  local account=${SLURM_JOB_ACCOUNT:-$1} qos=${SLURM_JOB_QOS:-$2} partition=${SLURM_JOB_PARTITION:-$3}
  [ "${account,,} ${qos,,} $partition" = "${1,,} ${2,,} $3" ] || finish "$EXIT_BILLED_OTHERWISE" \
    "billed to account $account, QOS $qos, partition $partition instead of $1, $2, $3"
}

# Sets STARTED, ENDS and TO_DIE, seconds since the epoch. The end is what Slurm gave: --time-min may have shrunk what
# was asked.
how_long() {
  STARTED=$(date +%s)
  ENDS=$(end_of_job) || finish "$EXIT_NO_END" "Slurm does not say when this job ends"
  TO_DIE=$((ENDS - PILOT_MARGIN_S))
  [ "$((TO_DIE - STARTED))" -ge 60 ] || finish "$EXIT_TOO_SHORT" "only $((ENDS - STARTED)) s left"
}

# Seconds since the epoch at which Slurm ends this job. SLURM_JOB_END_TIME is there since 23.02.
end_of_job() {
  local text
  if [ -n "${SLURM_JOB_END_TIME:-}" ]; then
    echo "$SLURM_JOB_END_TIME"
    return
  fi
  text=$(timeout 30 scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.* EndTime=\([^ ]*\).*/\1/p') || return 1
  [ -n "$text" ] && [ "$text" != Unknown ] && date -d "$text" +%s
}

# run_checks PATTERN: the checks of these names; ends the pilot at the first that fails. What they found out is kept for
# the startd's ad.
run_checks() {
  local names
  # shellcheck disable=SC2086  # a pattern
  names=$(cd "$PILOT_DIR" && ls -d $1 2> /dev/null)
  [ -n "$names" ] || return 0
  # In the background, so that a signal is heard meanwhile.
  # shellcheck disable=SC2086  # names without blanks
  "$PILOT_DIR/run-checks" join 300 ${names//checks\//} >> "$PILOT_DIR/checked" 2> "$PILOT_DIR/why" &
  CHECKING=$!
  wait "$CHECKING" || finish "$(check_code $?)" "$(tail -n 1 "$PILOT_DIR/why")"
  CHECKING=''
}

# leave_early REASON: before it has joined there is nothing to lose.
leave_early() {
  trap '' TERM INT USR1
  # Again and again: one that is only just forked still has this shell's trap, and a TERM is lost on it.
  for _ in {1..20}; do
    if [ -z "$CHECKING" ] || ! kill -TERM "$CHECKING" 2> /dev/null; then break; fi
    sleep 0.1
  done
  finish "$EXIT_GOOD" "$1 before it joined"
}

# taken_back: whether Slurm is ending this job, when what it runs has ended as if by itself. Where Slurm signals every
# process of a job (proctrack/linuxproc: children first) the child may be gone before this shell hears of it. slurmctld
# marks a job before it signals; a raw signal (scancel --signal) leaves no mark, so it gets two seconds to come.
taken_back() {
  local job
  job=$(timeout 10 scontrol show job -o "$SLURM_JOB_ID" 2> /dev/null)
  if [[ $job =~ ' JobState='(CANCELLED|COMPLETING|PREEMPTED|TIMEOUT) || $job =~ ' PreemptTime='[0-9] ]]; then return 0; fi
  # In the background, so that its trap runs at once.
  sleep 2 &
  wait $!
  return 1
}

# Directories of this pilot alone. Where one of that name is there already somebody else made it, and could change what
# is put into it.
own_directories() {
  mkdir -p "$SCRATCH" "$JOB_SCRATCH" 2> /dev/null
  mkdir -m 700 "$PILOT_DIR" 2> /dev/null || no_directory "$PILOT_DIR"
  MADE=("$PILOT_DIR")
  if [ "$JOB_DIR" != "$PILOT_DIR" ]; then
    mkdir -m 700 "$JOB_DIR" 2> /dev/null || no_directory "$JOB_DIR"
    MADE+=("$JOB_DIR")
  fi
}

no_directory() {
  [ ! -e "$1" ] || finish "$EXIT_NO_SCRATCH" "$1 is there already"
  finish "$EXIT_NO_SCRATCH" "no scratch space: $1 cannot be made"
}

# A check of the site's own ends with any code; those of docs/pilot.md are kept, so that they mean what they say there.
check_code() {
  if [ "$1" -ge "$FIRST_OF_CHECKS" ] && [ "$1" -le "$LAST_OF_CHECKS" ]; then echo "$1"; else echo "$EXIT_OWN_CHECK_FAILED"; fi
}

# set_since BEFORE: names of the exported variables that are new or changed since `export -p | sort` gave that.
set_since() {
  comm -13 <(echo "$1") <(export -p | sort) | sed -n 's/^declare -x \([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' \
    | grep -vxE 'PWD|OLDPWD|SHLVL|_' | paste -sd ,
}

# start_sentinel PID: when a preemption's grace begins Slurm tells job steps only, not this script. A step that does
# nothing else hears it, leaves a note and sends TERM to PID. It ends when $MASTER has ended.
# A job that is cancelled while it starts never hears the TERM that came before its script (24.11, 26.05): srun, which
# gets no step any more, is the only one that says so before the KILL.
start_sentinel() {
  command -v srun > /dev/null || return 0
  {
    local said
    # shellcheck disable=SC2016  # expanded by the inner shell
    said=$(srun --quiet --overlap --ntasks=1 --cpus-per-task=1 --mem=0 --gres=none --job-name=sentinel --export=ALL \
      bash -c '
        trap "date +%FT%T > \"\$2\"; kill -TERM \"\$3\"" TERM
        while kill -0 "$1" 2> /dev/null; do sleep 1 & wait $!; done' sentinel "$MASTER" "$PILOT_DIR/announced" "$1" 2>&1)
    if [ -n "$said" ] && kill -0 "$MASTER" 2> /dev/null; then
      say "$said"
      case $said in
        *expired* | *'already complet'*) end_at_once "$1" ;;
      esac
    fi
  } &
  SENTINEL=$!
}

# end_at_once PID: tell PID, and kill $MASTER if that was not heard: a daemon that is only just starting may not hear
# it, and nothing runs yet that could be lost.
end_at_once() {
  date +%FT%T > "$PILOT_DIR/announced"
  kill -TERM "$1" 2> /dev/null
  for _ in 1 2 3; do
    sleep 1
    kill -0 "$MASTER" 2> /dev/null || return 0
  done
  pkill -KILL -P "$MASTER" 2> /dev/null
  kill -KILL "$MASTER" 2> /dev/null
}
