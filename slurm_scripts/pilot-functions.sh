# shellcheck shell=bash disable=SC2034,SC2317
# What pilot.sh.j2 calls; put into it as it stands.

say() { printf '%s %s\n' "$(date +%FT%T)" "$*"; }

# finish CODE REASON: the one line that the controller reads, and the exit code that sacct keeps.
finish() {
  OUTCOME="code=$1 reason=$2"
  say "htcebridge-outcome $OUTCOME"
  exit "$1"
}

# leave SIGNAL REASON: tell condor_master, and nobody else. A raw signal to a payload would complete its job.
leave() {
  WHY=$2
  say "leaving: $WHY"
  [ -z "$MASTER" ] || kill "-$1" "$MASTER" 2> /dev/null
}

# Whatever happens, no process and no file stays on the node; the logs of a failed pilot go to the shared directory.
clean_up() {
  local code=$?
  trap '' TERM INT USR1
  if [ -n "$MASTER" ]; then
    kill -QUIT "$MASTER" 2> /dev/null
    for _ in {1..20}; do
      kill -0 "$MASTER" 2> /dev/null || break
      sleep 0.5
    done
  fi
  # It ends by itself when the master is gone.
  for _ in {1..10}; do
    if [ -z "$SENTINEL" ] || ! kill -0 "$SENTINEL" 2> /dev/null; then break; fi
    sleep 0.5
  done
  [ -n "$OUTCOME" ] || say "htcebridge-outcome code=$code reason=the script ended unexpectedly"
  if [ -n "${JOINING:-}" ]; then say_goodbye; fi
  if [ -d "$PILOT_DIR" ]; then
    if [ "$code" -ne 0 ]; then
      tail -n 200 "$PILOT_DIR"/log/MasterLog "$PILOT_DIR"/log/StartLog 2> /dev/null
    fi
    cd / && rm -rf -- "$PILOT_DIR"
  fi
}

# Take this pilot's ads out of the collector. The startd does so itself unless it died hard (scancel can kill its
# condor_procd with a broadcast TERM): its ads would stay for 15 minutes, and be matched.
say_goodbye() {
  local what
  for what in STARTD:Machine STARTD:StartD MASTER:DaemonMaster; do
    printf 'MyType = "Query"\nTargetType = "%s"\nRequirements = PilotJobId =?= "%s"\n' "${what#*:}" "$PILOT_ID" \
      > "$PILOT_DIR/goodbye"
    timeout 10 condor_advertise "INVALIDATE_${what%:*}_ADS" "$PILOT_DIR/goodbye" > /dev/null \
      || say "the collector may still show the $(tr '[:upper:]' '[:lower:]' <<< "${what%:*}") of this pilot"
  done
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

# MB that this job may use: what Slurm says, or less where a cgroup says less.
memory_given() {
  local given limit group directory
  given=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * ${SLURM_CPUS_ON_NODE:-0}))}
  if [ "$given" -le 0 ]; then
    given=$(($(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024))
  fi
  group=$(sed -n 's/^0:://p' /proc/self/cgroup)
  directory=/sys/fs/cgroup$group/
  while [ "$directory" != /sys/fs/cgroup/ ] && [ "$directory" != / ]; do
    limit=$(cat "${directory}memory.max" 2> /dev/null)
    case $limit in
      '' | max) ;;
      *) [ "$((limit / 1048576))" -ge "$given" ] || given=$((limit / 1048576)) ;;
    esac
    directory=${directory%/}
    directory=${directory%/*}/
  done
  group=$(sed -n 's/^[0-9]*:\([^:]*,\)\{0,1\}memory[^:]*://p' /proc/self/cgroup)
  limit=$(cat "/sys/fs/cgroup/memory$group/memory.limit_in_bytes" 2> /dev/null)
  if [ -n "$limit" ] && [ "$((limit / 1048576))" -lt "$given" ]; then
    given=$((limit / 1048576))
  fi
  echo "$given"
}

# afuse mounts a repository when it is first touched; a hanging one must not hang the pilot.
check_cvmfs() {
  for _ in {1..6}; do
    timeout 20 ls "/cvmfs/$1" > /dev/null 2>&1 && return
    sleep 5
  done
  finish 11 "CVMFS repository $1 is not mounted"
}

# token_outlives FILE TIME: true if the token has no expiry or one after TIME. Reads the JWT's second part.
token_outlives() {
  local payload expires
  payload=$(cut -d. -f2 "$1" | head -n 1 | tr '_-' '/+')
  while [ "$((${#payload} % 4))" -ne 0 ]; do payload="$payload="; done
  expires=$(base64 -d <<< "$payload" 2> /dev/null | sed -n 's/.*"exp": *\([0-9]*\).*/\1/p')
  [ -z "$expires" ] || [ "$expires" -gt "$2" ]
}

# use_condor PREFIX: find what the configuration needs. Debian, RPMs and tarballs put them in different places.
use_condor() {
  local directory
  CONDOR=$1 CONDOR_LIB=$1/lib CONDOR_LIBEXEC=$1/libexec
  for directory in "$1/lib64/condor" "$1/lib/condor"; do
    if [ -d "$directory" ]; then CONDOR_LIB=$directory; fi
  done
  if [ -d "$1/libexec/condor" ]; then CONDOR_LIBEXEC=$1/libexec/condor; fi
  PATH=$1/bin:$1/sbin:${PATH:-/usr/bin:/bin}
  export PATH
}

# When a preemption's grace begins Slurm tells job steps only, not this script: a step that does nothing else
# hears it, leaves a note and tells condor_master.
start_sentinel() {
  command -v srun > /dev/null || return 0
  # shellcheck disable=SC2016  # expanded by the inner shell
  srun --quiet --overlap --ntasks=1 --cpus-per-task=1 --mem=0 --gres=none --job-name=sentinel --export=ALL bash -c '
    trap "date +%FT%T > \"\$2\"; kill -TERM \"\$1\"" TERM
    while kill -0 "$1" 2> /dev/null; do sleep 1 & wait $!; done' sentinel "$MASTER" "$PILOT_DIR/announced" &
  SENTINEL=$!
}
