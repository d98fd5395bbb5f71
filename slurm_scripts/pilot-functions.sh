# shellcheck shell=bash disable=SC2016,SC2034,SC2317
# What pilot-main.sh calls; put into the script as it stands.

# leave SIGNAL REASON: tell condor_master, and nobody else. A raw signal to a payload would complete its job.
leave() {
  because "$2"
  LEFT=${LEFT:-$(date +%s)}
  say "leaving: $2"
  [ -z "$MASTER" ] || kill "-$1" "$MASTER" 2> /dev/null
}

# Whether condor_master has ended because it was told to, by whomever.
told_to_leave() {
  [ -z "$WHY" ] || return 0
  if drained; then
    because "drained ($(drain_reason))"
  elif [ -s "$PILOT_DIR/announced" ] || taken_back; then
    because 'Slurm takes the node back'
  fi
  [ -n "$WHY" ]
}

# ended_by_itself CODE: condor_master has, with this code.
ended_by_itself() {
  [ "$(deaths_of_startd)" -lt 3 ] || finish "$EXIT_DAEMON_DIED" "condor_startd died $(deaths_of_startd) times"
  case $1 in
    0 | 99) joined || finish "$EXIT_NEVER_SEEN" "left without having been seen in the collector" ;;
    *) finish "$EXIT_DAEMON_DIED" "condor_master ended with code $1" ;;
  esac
  finish "$EXIT_GOOD" "idle or at the end of its life"
}

# Whatever happens, no process and no file stays on the node; the logs of a failed pilot go to the shared directory.
clean_up() {
  local code=$?
  trap '' TERM INT USR1
  # KILL: where it is only just forked it still has this shell's trap, and a TERM is lost on it.
  [ -z "$WATCHER" ] || kill -KILL "$WATCHER" 2> /dev/null
  if [ -n "$MASTER" ]; then
    for _ in {1..20}; do
      # Again and again: until condor_master has its own handler, QUIT is ignored.
      kill -QUIT "$MASTER" 2> /dev/null || break
      sleep 0.5
    done
  fi
  # It ends by itself when the master is gone.
  for _ in {1..10}; do
    if [ -z "$SENTINEL" ] || ! kill -0 "$SENTINEL" 2> /dev/null; then break; fi
    sleep 0.5
  done
  if [ "$code" -ne 0 ]; then
    tail -n 200 "$PILOT_DIR"/log/MasterLog "$PILOT_DIR"/log/StartLog 2> /dev/null
  fi
  if [ -n "${JOINING:-}" ]; then say_goodbye; fi
  # Before rm: what jobs left may take longer to remove than Slurm waits with its KILL.
  # shellcheck disable=SC2046  # three numbers
  conclude "$code" "$(joined && echo yes || echo no)" "$(jobs_started)" $(work_done)
  # What a job has taken the permissions from, too; and whatever is mounted there is not ours to empty.
  cd / && { rm -rf --one-file-system -- "${MADE[@]}" || { chmod -R u+rwX "${MADE[@]}"; rm -rf --one-file-system -- "${MADE[@]}"; }; } 2> /dev/null
}

# joined: true once the collector has shown this pilot, or a job has come to it.
joined() { [ -e "$PILOT_DIR/joined" ] || [ "$(jobs_started)" -gt 0 ]; }

# How many jobs the startd has started: one such line each in its log, rotated parts included (23.9, 25.14).
jobs_started() { cat "$PILOT_DIR"/log/StartLog* 2> /dev/null | grep -c 'Changing activity: Idle -> Busy'; }

# Jobs that were running when the pilot had to leave, core-seconds of all its jobs, and of those: what they lose. The
# startd writes each job's ad when it ends here, whatever the end; 23.9 does not say which end it was, so the time tells.
work_done() {
  local since=${LEFT:-${TO_DIE:-0}}
  [ "$since" -le "${TO_DIE:-0}" ] || since=$TO_DIE
  cat "$PILOT_DIR"/log/startd_history* 2> /dev/null | awk -v since="$since" '
    $1 == "CompletionDate" { ended = $3 }
    $1 == "JobCurrentStartDate" { started = $3 }
    $1 == "CpusProvisioned" { cpus = $3 }
    /^\*\*\*/ {
      if (started > 0 && ended >= started) {
        all += (ended - started) * cpus
        if (ended >= since) { evicted++; lost += (ended - started) * cpus }
      }
      ended = started = cpus = 0
    }
    END { printf "%d %d %d\n", evicted, all, lost }'
}

# watch: what neither condor_master nor the startd does by itself, until the pilot ends. It must not
# hang with the shared file system, so each look at the marks is a process of its own, one at a time.
watch() {
  local look='' seconds=0 told
  told=$(what_to_tell)
  while sleep 5; do
    seconds=$((seconds + 5))
    if [ "$((seconds % 15))" -eq 0 ] && ! { [ -n "$look" ] && kill -0 "$look" 2> /dev/null; }; then
      look_for_marks &
      look=$!
    fi
    if [ "$(what_to_tell)" != "$told" ] && [ -e "$PILOT_DIR/log/.master_address" ]; then
      told=$(what_to_tell)
      kill -HUP "$MASTER" 2> /dev/null
    fi
    # DAEMON_SHUTDOWN ends a drained startd that has no jobs, and its address file goes with it. The master would
    # notice with its own next update to the collector, and stay for three minutes at least.
    if drained && [ ! -e "$PILOT_DIR/log/.startd_address" ]; then kill -TERM "$MASTER" 2> /dev/null; fi
    # The master starts a dead startd again for ever; a node that nobody can use is better given back.
    if [ "$(deaths_of_startd)" -ge 3 ]; then kill -TERM "$MASTER" 2> /dev/null; fi
    [ -e "$PILOT_DIR/joined" ] || ! in_collector || : > "$PILOT_DIR/joined"
  done
}

# What the startd's configuration includes: a drain mark, and what the checks say. Compared as text: to -nt of bash 4.4
# (RHEL 8) two files of the same second are equally new.
what_to_tell() { cat "$PILOT_DIR/drain.conf" "$PILOT_DIR/health.conf" 2> /dev/null; }

# How often the startd has died by itself: 99 is how it says that it shut itself down.
deaths_of_startd() {
  grep -E 'The STARTD \(pid [0-9]+\) (exited|died)' "$PILOT_DIR/log/MasterLog" 2> /dev/null | grep -cvE 'status (0|99)$'
}

in_collector() {
  [ -n "$(timeout 10 condor_status -limit 1 -constraint "PilotJobId =?= \"$PILOT_ID\"" -af Name 2> /dev/null)" ]
}

# look_for_marks: leave in drain.conf, for the startd, what the marks in the shared directory say.
# Returns 1 if the directory is gone; then what was seen last stays.
look_for_marks() {
  local reason='' ad known
  if [ -e "$PILOT_SHARED_DIR/STOP" ]; then
    reason='stop'
  elif [ -e "$PILOT_SHARED_DIR/drain/$PILOT_INSTANCE.$PILOT_RESOURCE" ]; then
    reason='resource'
  elif [ -e "$PILOT_SHARED_DIR/drain/$PILOT_ID" ]; then
    reason='pilot'
  elif [ -e "$PILOT_SHARED_DIR/drain/$PILOT_ID.tail" ]; then
    reason='tail'
  elif [ ! -d "$PILOT_SHARED_DIR/logs" ]; then
    # Slurm writes this pilot's log there: no mark is seen because nothing is.
    return 1
  fi
  ad=$'PilotDraining = false\nPilotDrainReason = undefined'
  [ -z "$reason" ] || ad=$'PilotDraining = true\nPilotDrainReason = "'$reason'"'
  known=$(cat "$PILOT_DIR/drain.conf" 2> /dev/null)
  if [ "$ad" = "$known" ]; then return 0; fi
  { echo "$ad" > "$PILOT_DIR/drain.new"; } 2> /dev/null && mv "$PILOT_DIR/drain.new" "$PILOT_DIR/drain.conf"
  # That it takes jobs from its start on is no news.
  if [ -n "$known$reason" ]; then say "${reason:+drains: }${reason:-takes jobs again}"; fi
}

drained() { grep -q 'PilotDraining = true' "$PILOT_DIR/drain.conf"; }

drain_reason() { sed -n 's/^PilotDrainReason = "\(.*\)"$/\1/p' "$PILOT_DIR/drain.conf"; }

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

# Sets CPUS and MEMORY_MB, that of the jobs.
what_slurm_gave() {
  CPUS=${SLURM_CPUS_ON_NODE:-$(nproc)}
  MEMORY_MB=$(($(memory_given) - PILOT_MEMORY_RESERVE_MB))
  [ "$MEMORY_MB" -gt 0 ] || finish "$EXIT_TOO_LITTLE_MEMORY" "Slurm gave less memory than memory_reserve"
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

# The startd's directories, the token and HTCondor itself.
bring_condor() {
  forget_knobs
  mkdir -p "$PILOT_DIR"/{address,log,lock,spool,tokens.d,passwords.d} "$JOB_DIR/execute" \
    || finish "$EXIT_NO_SCRATCH" "no scratch space in $SCRATCH"
  cp "$PILOT_TOKEN_FILE" "$PILOT_DIR/tokens.d/pilot" \
    || finish "$EXIT_NO_TOKEN" "the token $PILOT_TOKEN_FILE cannot be read"
  chmod 600 "$PILOT_DIR/tokens.d/pilot"
  token_outlives "$PILOT_DIR/tokens.d/pilot" "$ENDS" \
    || finish "$EXIT_TOKEN_EXPIRES" "the token $PILOT_TOKEN_FILE expires before this pilot ends"
  find_condor
}

# HTCondor from where PILOT_CONDOR says: tarball:FILE is unpacked, cvmfs:DIRECTORY is used as it is, system is the node's.
find_condor() {
  local path=${PILOT_CONDOR#*:}
  case $PILOT_CONDOR in
    tarball:*)
      mkdir "$PILOT_DIR/condor"
      tar -xf "$path" -C "$PILOT_DIR/condor" --strip-components=1 || finish "$EXIT_NO_HTCONDOR" "no HTCondor in $path"
      use_condor "$PILOT_DIR/condor"
      ;;
    cvmfs:*) use_condor "$path" ;;
    *) use_condor /usr ;;
  esac
  command -v condor_master > /dev/null || finish "$EXIT_NO_HTCONDOR" "condor_master is not on PATH ($PILOT_CONDOR)"
}

# The startd's configuration: what only the node knows, then what the resource says, then what the checks find out with
# HTCondor in place.
configure_condor() {
  local address apptainer='' found
  export CONDOR_CONFIG=$PILOT_DIR/condor_config
  write_configuration
  address=$(address_towards "${PILOT_COLLECTOR%%[:?]*}")
  [ -z "$PILOT_APPTAINER" ] || apptainer=$(command -v "$PILOT_APPTAINER")
  cat - "$PILOT_DIR/startd.conf" > "$CONDOR_CONFIG" << END_OF_FACTS
PILOT_DIR = $PILOT_DIR
JOB_DIR = $JOB_DIR
PILOT_ID = $PILOT_ID
PILOT_NODE = $NODE
PILOT_USER = $USER
PILOT_DOMAIN = pilot-${PILOT_ID//_/-}.$PILOT_SITE.invalid
RELEASE_DIR = $CONDOR
BIN = $CONDOR/bin
SBIN = $CONDOR/sbin
LIB = $CONDOR_LIB
LIBEXEC = $CONDOR_LIBEXEC
NUM_CPUS = $CPUS
MEMORY = $MEMORY_MB
DISK = $(disk_for_jobs)
SINGULARITY = $apptainer
${address:+NETWORK_INTERFACE = $address}
${JOB_VARIABLES:+JOB_INHERITS_STARTER_ENVIRONMENT = $JOB_VARIABLES}
GLIDEIN_ToDie = $TO_DIE
GLIDEIN_ToRetire = $((TO_DIE - 60))
PilotJobId = "$PILOT_ID"
PilotStarted = $STARTED
PilotEnds = $ENDS
GLIDEIN_SiteWMS_JobId = "$SLURM_JOB_ID"
GLIDEIN_SiteWMS_Slot = "$NODE"
GLIDEIN_SiteWMS_Queue = "${SLURM_JOB_PARTITION:-}"
PILOT_ATTRS = GLIDEIN_ToDie GLIDEIN_ToRetire PilotJobId PilotStarted PilotEnds GLIDEIN_SiteWMS_JobId GLIDEIN_SiteWMS_Slot GLIDEIN_SiteWMS_Queue
END_OF_FACTS
  isolate_jobs
  run_checks 'checks/[5-9]*'
  found=$(found_by_checks)
  printf '%s\nSTARTD_ATTRS = $(STARTD_ATTRS) %s\n' "$found" "$(names_of "$found")" >> "$CONDOR_CONFIG"
}

# Have each starter, and so its job, run isolated, in the first of the ways of which a try shows that the node can.
isolate_jobs() {
  local why='' how proved=none knobs='' each
  mkdir -p "$PILOT_DIR"/{root,unreadable,log/starters} "$JOB_DIR/isolated"
  # Into processes of a program that cannot be read nobody of the same user can look.
  for each in STARTER PROCD; do
    cp "$(condor_config_val "$each")" "$PILOT_DIR/unreadable/" && chmod 0111 "$PILOT_DIR"/unreadable/*
  done
  for each in "${SHOWN_TO_JOBS[@]}"; do
    [ -e "$each" ] || say "bind: there is no $each here"
  done
  for how in ${PILOT_ISOLATION/auto/namespaces container}; do
    [ "$how" != none ] || break
    isolation_facts "$how" > "$PILOT_DIR/isolation.facts"
    if each=$(isolation_fails 2>&1); then
      why+="${why:+; }$how: $each"
    else
      proved=$how
      # The child that the startd knows is not the starter: it gets messages to its socket, not signals.
      knobs=$'STARTER = $(PILOT_DIR)/starter\nSTARTD.NEVER_USE_KILL_FOR_DC_SIGNALS = True\n'
      break
    fi
  done
  if [ "$proved" = none ] && [ -n "$why" ]; then
    say "jobs are not isolated: $why"
    [ -z "$PILOT_REQUIRES_ISOLATION" ] || finish "$EXIT_NO_ISOLATION" "jobs cannot be isolated: $why"
  fi
  printf '%sPilotIsolation = "%s"\nSTARTD_ATTRS = $(STARTD_ATTRS) PilotIsolation\n' "$knobs" "$proved" >> "$CONDOR_CONFIG"
}

isolation_facts() {
  declare -p JOB_DIR HOME
  printf 'HOW=%q APPTAINER=%q\n' "$1" "$([ -z "$PILOT_APPTAINER" ] || command -v "$PILOT_APPTAINER")"
  printf 'STARTER=%q PROCD=%q\n' "$(condor_config_val STARTER)" "$(condor_config_val PROCD)"
  printf 'SHOWN=(%s)\n' "$(printf '%q ' "${SHOWN_TO_JOBS[@]}")"
}

# Why a program there sees what it must not see, or condor_starter does not run; false if all is as it should be.
isolation_fails() {
  local seen each hidden=() paths=("$HOME" "$PILOT_SHARED_DIR" "$PILOT_TOKEN_FILE" "$PILOT_DIR/tokens.d" "$JOB_DIR/isolated")
  for each in "${paths[@]}"; do
    # What is missing can be seen by nobody; that it is missing is for others to say.
    [ -e "$each" ] || continue
    hidden+=("$(stat -L -c %d:%i "$each") $each" "$(stat -L -c %d:%i "$each") $(readlink -f "$each")")
  done
  seen=$(timeout -k 1 60 "$PILOT_DIR/starter" --try "${hidden[@]}" 2>&1) \
    && seen=$(timeout -k 1 60 "$PILOT_DIR/starter" -classad 2>&1) && return 1
  tail -n 2 <<< "${seen:-no reason}" | paste -sd ' '
}

# KB free for the jobs' directories, or as many as the resource has where the file system has more: two pilots may share it.
disk_for_jobs() {
  local free
  read -r _ _ _ free _ < <(df -Pk "$JOB_DIR" | tail -n 1)
  if [ "$free" -lt "$PILOT_DISK_KB" ]; then echo "$free"; else echo "$PILOT_DISK_KB"; fi
}

# address_towards HOST: the address of this node from which HOST is reached. InfiniBand is an interface too.
address_towards() {
  local address
  address=$(getent ahostsv4 "$1" | sed -n '1s/ .*//p')
  [ -z "$address" ] || ip -o route get "$address" 2> /dev/null | sed -n 's/.* src \([0-9.]*\).*/\1/p'
}

# As lines of HTCondor's configuration: what the checks have found out, and the names of it. What the configuration has
# already is not theirs to set.
found_by_checks() {
  awk 'NR == FNR { if ($2 == "=") known[tolower($1)]; next }
    /^[A-Za-z_][A-Za-z0-9_]* = ./ && !(tolower($1) in known) { gsub(/\$/, "$(DOLLAR)"); print }' \
    "$CONDOR_CONFIG" "$PILOT_DIR/checked"
}
names_of() { cut -d ' ' -f 1 <<< "$1" | paste -sd ' '; }

# token_outlives FILE TIME: true if the token has no expiry or one after TIME. Reads the JWT's second part.
token_outlives() {
  local payload expires
  payload=$(cut -d. -f2 "$1" | head -n 1 | tr '_-' '/+')
  while [ "$((${#payload} % 4))" -ne 0 ]; do payload="$payload="; done
  expires=$(base64 -d <<< "$payload" 2> /dev/null | sed -n 's/.*"exp": *\([0-9]*\).*/\1/p')
  [ -z "$expires" ] || [ "$expires" -gt "$2" ]
}

# forget_knobs: _CONDOR_X in the environment is the knob X, in upper or lower case, and wins over every file; CONDOR_INHERIT
# makes a daemon somebody's child. `setup`, a TaskProlog or a SPANK plug-in may have set them.
forget_knobs() {
  local name
  for name in $(compgen -e); do
    case ${name^^} in _CONDOR_* | CONDOR_*) unset "$name" ;; esac
  done
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
