#!/bin/bash
# A hostile grid job: tries what a job must not be able to do, changes nothing that it could, and says for each whether
# it could: NAME yes|no WHAT. usage: payload.sh HOME SHARED_DIR      (of the account that the pilots run under)
home=$1 shared=$2

# could NAME WHAT COMMAND...: whether a command succeeds and says something, or just succeeds where WHAT is "-".
could() {
  local name=$1 what=$2 said
  shift 2
  if said=$("$@" 2> /dev/null) && [ -n "${said:-${what#-}}" ]; then
    echo "$name yes ${what#-}$(head -n 1 <<< "$said" | cut -c1-60 | tr -dc '[:print:]')"
  else
    echo "$name no"
  fi
}

written() { : > "$1/.hostile" && rm "$1/.hostile" && echo "$1"; }
appended() { [ -f "$1" ] && : >> "$1" && echo "$1"; }
any() { # COMMAND FILE...
  local command=$1 each
  shift
  for each in "$@"; do "$command" "$each" && return; done
  return 1
}
pids_of() { pgrep -u "$(id -u)" "$@"; }
read_by_others() { # FILE: of a process that is not this job's
  local pid
  for pid in $(pids_of 'condor_(master|startd|shared_p|procd|starter)|slurm_script'); do
    tr '\0' '\n' 2> /dev/null < "/proc/$pid/$1" | grep -m 1 . && return
  done
  return 1
}
memory_of_others() {
  local pid
  for pid in $(pids_of 'condor_(master|startd|shared_p|procd|starter)|slurm_script'); do
    { exec 3< "/proc/$pid/mem"; } 2> /dev/null && echo "of $pid" && return
  done
  return 1
}
process_1() { # the first that it can see: that began with the starter's key to the startd
  tr '\0' '\n' 2> /dev/null < /proc/1/environ | grep -m 1 -o SessionKey: || ls -A "/proc/1/root$home/.config"
}
root_of_others() {
  local pid
  for pid in /proc/[0-9]*; do
    [ -n "$(ls -A "$pid/root$home/.config" 2> /dev/null)" ] && echo "$pid/root" && return
  done
  return 1
}
signalled() { # its own starter and the condor_procd of that are its own affair
  local pid
  for pid in $(pids_of 'condor_(master|startd|shared_p)|slurm_script'); do
    kill -0 "$pid" && echo "$pid" && return
  done
  return 1
}
submitted() {
  local id
  id=$(sbatch --parsable -o /dev/null -p dcgp_usr_prod "$@" --hold --wrap true) && scancel "$id" && echo "$id"
}
# What the startd's tools say to whoever shares its user, its /tmp and its network.
startd_says() {
  local address
  # Not through CCB, which the pilot's tools have no token for.
  address=$(sed -n 's/^MyAddress = "\(<[^?]*?\).*\(sock=[^>]*>\)"$/\1\2/p' "$_CONDOR_MACHINE_AD")
  CONDOR_CONFIG=/dev/null _CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS=FS _CONDOR_SEC_CLIENT_AUTHENTICATION=REQUIRED \
    timeout 20 condor_ping -address "$address" -type startd "$1" | grep -i succeeded
}
remounted() { unshare -Urm sh -c "umount -l '$home' /tmp /proc; ls -A '$home/.config'"; }
opened() { # a file that the starter left open
  local each
  for each in /proc/self/fd/*; do
    case $(readlink "$each") in
      /proc/* | "$PWD"/* | /dev/* | pipe:* | '') ;;
      *) readlink "$each" && return ;;
    esac
  done
  return 1
}
neighbours() { find /scratch_local -name .job.ad -not -path "${PWD%%/scratch}/*" -exec cat {} + | grep ^Owner; }
start_files() { [ -d "$home/.config" ] && written "$home"; }

could venv '-' written "$home/htcebridge-venv"
could configuration '-' appended "$home/.config/htcebridge/htcebridge.toml"
could start-files '-' start_files
could controller-token '' cat "$home/.config/htcebridge/pilot.idtoken"
could cluster '' squeue -h -O jobid
could billed-account '' submitted -A INF24_lhc_2 -q normal
could own-account '' submitted -A INF24_lhc_2 -q qos_lowprio
could kill-switch '-' written "$shared"
could outcome-lines '-' any appended "$shared"/logs/*.out
could pilot-token '' any cat /scratch_local/*/htcebridge-*/tokens.d/pilot
could htcondor-itself '-' any appended /scratch_local/*/htcebridge-*/{condor_starter,starter,run-checks}
could other-sandbox '' neighbours
could environment '' read_by_others environ
could memory '' memory_of_others
could root-of-others '' root_of_others
could signal '' signalled
could startd-write '' startd_says WRITE
could startd-daemon '' startd_says DAEMON
could root-directory '-' written /
could process-1 '' process_1
could nested-namespace '' remounted
could open-file '' opened
# Whether it counts is seen from outside: where it is isolated, what it finds is a copy.
for each in /scratch_local/*/htcebridge-*/condor_config; do echo '# hostile' >> "$each"; done 2> /dev/null
# Out of sight of who follows parents, sessions and marks in the environment.
env -i setsid /bin/sh -c '/bin/sleep 4321 &' < /dev/null > /dev/null 2>&1
echo 'done'
