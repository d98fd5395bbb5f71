# shellcheck shell=bash disable=SC2034,SC2317
# What executor-main.sh calls; put into the script as it stands. $MASTER is the executor's process, and its group.

LOGGER='' LOG_BYTES=1000000

# Executors call what stands beside them as ./NAME, and leave files where they stand: here both are on the node.
bring_executor() {
  mkdir -p "$PILOT_DIR"/{work,tmp,log} || finish "$EXIT_NO_SCRATCH" "no scratch space in $SCRATCH"
  if [ ! -f "$PILOT_EXECUTOR" ] || [ ! -x "$PILOT_EXECUTOR" ]; then
    finish "$EXIT_NO_EXECUTOR" "the executor $PILOT_EXECUTOR is not there, or not executable"
  fi
  cd "$PILOT_DIR/work" || finish "$EXIT_NO_SCRATCH" "no scratch space in $SCRATCH"
  ln -s -- "${PILOT_EXECUTOR%/*}"/* .
  export TMPDIR=$PILOT_DIR/tmp PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
}

# start_executor FILE: in a process group of its own, so that nothing of it is left behind. Without `set -m` bash would
# start it with SIGINT and SIGQUIT ignored, for itself and all it starts.
start_executor() {
  exec 3> >(bounded_log)
  LOGGER=$!
  set -m
  HTCEBRIDGE_PILOT=$PILOT_ID "$1" < /dev/null >&3 2>&3 3>&- &
  MASTER=$!
  set +m
  exec 3>&-
}

# The first LOG_BYTES go into the pilot's log as they come; of what follows the end is kept on the node for close_log.
# A talkative executor must not fill the shared file system.
bounded_log() {
  trap '' TERM INT USR1
  # Unbuffered: what is said is in the log even if this has to be killed.
  stdbuf -o0 head -c "$LOG_BYTES"
  while stdbuf -o0 head -c "$LOG_BYTES" > "$PILOT_DIR/log/next"; do
    [ "$(stat -c %s "$PILOT_DIR/log/next")" -eq "$LOG_BYTES" ] || break
    mv -f "$PILOT_DIR/log/next" "$PILOT_DIR/log/last"
  done
}

# Put the kept end into the pilot's log. A daemon that the executor left behind may hold its output open for ever.
close_log() {
  local children
  [ -n "$LOGGER" ] || return 0
  for _ in {1..10}; do
    runs "$LOGGER" || break
    sleep 0.2
  done
  children=$(pgrep -P "$LOGGER")
  # shellcheck disable=SC2086  # several numbers
  kill -KILL "$LOGGER" $children 2> /dev/null
  LOGGER=''
  if [ -s "$PILOT_DIR/log/next" ] || [ -s "$PILOT_DIR/log/last" ]; then
    say "the executor said more than $LOG_BYTES bytes; the end of it:"
    cat "$PILOT_DIR/log/last" "$PILOT_DIR/log/next" 2> /dev/null | tail -c "$LOG_BYTES"
  fi
}

# leave REASON: tell the executor, give it PILOT_VACATE_S seconds, and end. All of it in the trap: what a `wait` returns that a
# signal has cut short is not to be relied on (-1 in bash 5.2), and a signal just before it would cut nothing short.
leave() {
  trap '' TERM INT USR1
  because "$1"
  say "leaving: $1"
  tell_to_end "$MASTER"
  end_all "$PILOT_VACATE_S"
  finish "$EXIT_GOOD" "$WHY"
}

# tell_to_end PID: TERM to this one process, which is to end what it runs. A wrapper without a trap dies of it and
# leaves what it ran alone: then it is the turn of that. Never all at once: a raw TERM to a payload of HTCondor
# completes its job, with the work lost.
tell_to_end() {
  local child children
  children=$(pgrep -P "$1")
  kill -TERM "$1" 2> /dev/null
  for _ in {1..10}; do
    runs "$1" || break
    sleep 0.2
  done
  if runs "$1"; then return; fi
  for child in $children; do
    if runs "$child"; then tell_to_end "$child"; fi
  done
}

# end_all SECONDS: wait so long for the executor's group, then end what is left of it, and the daemons that it put into
# sessions of their own. Slurm's proctrack/linuxproc would leave those on the node.
end_all() {
  local deadline=$((SECONDS + $1)) left
  while [ -n "$(running "$(pgrep -g "$MASTER")")" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
  left=$(all_of_it)
  [ -n "$left" ] || return 0
  say "ends what is left: $(ps -o args= -p "${left// /,}" | cut -c1-80 | paste -sd ';')"
  # shellcheck disable=SC2086  # several numbers
  kill -TERM $left 2> /dev/null
  for _ in {1..15}; do
    sleep 0.2
    left=$(all_of_it)
    [ -n "$left" ] || return 0
  done
  # shellcheck disable=SC2086
  kill -KILL $left 2> /dev/null
}

# The executor's group, and whatever else has inherited the variable that start_executor has set.
all_of_it() {
  running "$(pgrep -g "$MASTER") $(grep -lsxzF "HTCEBRIDGE_PILOT=$PILOT_ID" /proc/[0-9]*/environ | cut -d/ -f3)"
}

# running PIDS: those of them that are there and no zombies.
running() {
  local pid found=''
  for pid in $1; do
    if runs "$pid"; then found="$found $pid"; fi
  done
  echo "${found# }"
}

# runs PID: true if it is there and no zombie (proc(5): the state stands behind the name in brackets).
runs() {
  local stat=''
  { read -r stat < "/proc/$1/stat"; } 2> /dev/null
  [[ ${stat##*) } == [!ZX]* ]]
}

# Whatever happens, no process and no file stays on the node. What matters most comes first: Slurm's KILL may be near.
clean_up() {
  local code=$?
  trap '' TERM INT USR1
  if [ -n "$MASTER" ]; then end_all 0; fi
  close_log
  # Its startds join a pool that is not looked at.
  conclude "$code" no 0
  # What the executor may have mounted there is not ours to empty.
  cd / && rm -rf --one-file-system -- "${MADE[@]}"
  # It ends by itself when the executor is gone.
  for _ in {1..10}; do
    if [ -z "$SENTINEL" ] || ! kill -0 "$SENTINEL" 2> /dev/null; then break; fi
    sleep 0.5
  done
}
