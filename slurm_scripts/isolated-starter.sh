#!/bin/bash
# The condor_starter of an isolated pilot: the startd runs this in its place, and condor_starter, the job and whatever
# else a job makes a starter run (transfer plug-ins, PreCmd, sshd, images) are in user, mount, PID and IPC namespaces of
# their own, or in a container that has the node's own system for an image. They see that system, what isolation.facts
# names, and a scratch directory; not the home, the shared directory, the pilot, its token, its processes or its other
# jobs. docs/security.md says against whom.
# shellcheck disable=SC2015  # `|| fail` is for whatever fails before it
set -u
PILOT_DIR=${0%/*}
HOW='' APPTAINER='' STARTER='' PROCD='' JOB_DIR='' HOME='' SHOWN=() path_of_jobs=$PATH
# shellcheck disable=SC1091
. "$PILOT_DIR/isolation.facts"
ROOT=$PILOT_DIR/root

# RHEL 8 has some of what is called here in /usr/sbin.
PATH=/usr/bin:/bin:/usr/sbin:/sbin

fail() {
  echo "isolation: $*" >&2
  exit 1
}

# Of the node, beside /bin, /lib and the like: what names of users and hosts are found with, where Apptainer begins.
SYSTEM=(/usr /etc /opt /sys /var/lib/sss /run/{nscd,systemd/resolve,resolvconf,NetworkManager})
SYSTEM+=(/var/{,lib/}{apptainer,singularity})
TOP=(/bin /sbin /lib /lib32 /lib64 /libx32)

# What a starter runs, or with --try "DEVICE:INODE PATH"... a look around instead: an error if one of these is there, or
# another process.
program=()
what_to_run() {
  program=("$STARTER" "$@")
  if [ "${1:-}" = --try ]; then
    # shellcheck disable=SC2016  # for the inner shell
    program=(/bin/bash -c '
      for each in "$@"; do
        if [ "$(stat -L -c %d:%i "${each#* }" 2> /dev/null)" = "${each%% *}" ]; then echo "${each#* } is there"; exit 1; fi
      done
      others=(/proc/[0-9]*)
      if [ "${#others[@]}" -gt 4 ]; then echo "other processes are there"; exit 1; fi
      if umount /proc /tmp 2> /dev/null; then echo "mounts can be taken away"; exit 1; fi
      if munge -n < /dev/null > /dev/null 2>&1; then echo "munge answers"; exit 1; fi
      (: > /tmp/try && : > "$HOME/try") || { echo "no /tmp or home of its own"; exit 1; }' "$@")
  fi
}

# sweep DIRECTORY...: remove what a job may have taken the permissions from.
sweep() { { chmod -R u+rwX "$@"; rm -rf --one-file-system -- "$@"; } 2> /dev/null; }

# own_directories NUMBER ARGUMENT...: new ones, of the starter with this number and these arguments.
own_directories() {
  local each slot=classad
  MINE=$JOB_DIR/isolated/$1
  for each in "$@"; do
    if [[ $each =~ ^slot[0-9_]+$ ]]; then slot=$each; fi
  done
  LOG=$PILOT_DIR/log/starters/$slot
  if [ -e "$LOG" ] || [ -e "$MINE" ]; then sweep "$LOG" "$MINE"; fi
  [ ! -e "$MINE" ] || fail "$MINE is there already"
  mkdir -p "$MINE"/{execute,tmp,home,lock,spool} "$LOG" || fail "no directory in $JOB_DIR"
}

# Where a pid cannot be chosen: one of some hundred.
# shellcheck disable=SC2016  # for the inner shells
OTHER_PIDS='
  other_pids() { for ((i = 0; i < $1 % 300; i++)); do (:); done; }'

if [ "${1:-}" != --namespaces ]; then
  # Directories of starters that are gone.
  for each in "$JOB_DIR"/isolated/[0-9]*; do
    [ -e "$each" ] || continue
    kill -0 "${each##*/}" 2> /dev/null || sweep "$each" "$JOB_DIR/execute/dir_${each##*/}"
  done
  # There the startd writes what is new of the slot, every minute; a job must not be the one who says where that goes.
  [ -z "${CONDOR_INHERIT:-}" ] || mkdir -p "$JOB_DIR/execute/dir_$$/htcondor"
  # The pilot's condor_procd knows no pid of in there, so the starter has one of its own. Without any (USE_PROCD) that of
  # 25.14 crashes when its job ends.
  unset CONDOR_PROCD_ADDRESS CONDOR_PROCD_ADDRESS_BASE
  # A starter ends when its parent's number is nobody's; in there it is process 1.
  [ -z "${CONDOR_INHERIT:-}" ] || export CONDOR_INHERIT="1 ${CONDOR_INHERIT#* }"
fi

# --- in a container --------------------------------------------------------------------------------------------------

# bind PATH [FROM [ro]]: it, or what is at FROM, is there. The image has a place for it.
bind() {
  local from=${2:-$1}
  if [ -d "$from" ]; then
    mkdir -p "$ROOT$1"
  elif [ -e "$from" ]; then
    mkdir -p "$ROOT${1%/*}" && : >> "$ROOT$1"
  else
    return 0
  fi
  BINDS+=(--bind "$from:$1${3:+:$3}")
}

in_a_container() {
  [ -n "$APPTAINER" ] || fail 'no Apptainer'
  BINDS=()
  own_directories "$$" "$@"
  what_to_run "$@"
  mkdir -p "$ROOT/proc" "$ROOT$HOME"
  for each in "${TOP[@]}"; do
    if [ -h "$each" ]; then [ -h "$ROOT$each" ] || cp -P "$each" "$ROOT$each"; else bind "$each"; fi
  done
  # Apptainer makes a /dev of its own; of the node's what GPUs, InfiniBand and images need.
  for each in "${SYSTEM[@]}" /dev/{nvidia*,dri,kfd,infiniband,fuse}; do bind "$each"; done
  bind /tmp "$MINE/tmp"
  bind /var/tmp "$MINE/tmp"
  for each in "${SHOWN[@]}"; do bind "$each"; done
  cp "$PILOT_DIR/condor_config" "$MINE/condor_config" && bind "$PILOT_DIR/condor_config" "$MINE/condor_config"
  for each in lock spool; do bind "$PILOT_DIR/$each" "$MINE/$each"; done
  bind "$PILOT_DIR/log" "$LOG"
  bind "$JOB_DIR/execute" "$MINE/execute"
  for each in SITECONF address condor; do bind "$PILOT_DIR/$each" "$PILOT_DIR/$each" ro; done
  for each in "$STARTER" "$PROCD"; do bind "$each" "$PILOT_DIR/unreadable/${each##*/}" ro; done
  trap : TERM INT QUIT # Slurm's, to every process: the starter hears them, too
  # The key to the startd is in nobody's environment that others in there can read: Apptainer's process 1 is readable.
  exec {key}< <(printf '%s\n' "${CONDOR_PRIVATE_INHERIT:-}")
  unset CONDOR_PRIVATE_INHERIT
  # shellcheck disable=SC2016  # for the inner shell
  APPTAINERENV_PATH=$path_of_jobs "$APPTAINER" --silent exec --contain --ipc --pid --home "$MINE/home:$HOME" \
    --pwd "$PILOT_DIR/log" "${BINDS[@]}" "$ROOT" /bin/bash -c "$OTHER_PIDS"'
    key=$2; IFS= read -r CONDOR_PRIVATE_INHERIT <&"$key"; exec {key}<&-
    [ -z "$CONDOR_PRIVATE_INHERIT" ] || export CONDOR_PRIVATE_INHERIT
    other_pids "$1"; exec "${@:3}"' starter "$$" "$key" "${program[@]}"
  code=$?
  sweep "$MINE"
  exit "$code"
}
[ "$HOW" != container ] || in_a_container "$@"

# --- in namespaces ---------------------------------------------------------------------------------------------------

# First: become process 1 of new ones, as their root, which is nobody outside.
if [ "${1:-}" != --namespaces ]; then
  trap '' TERM # Slurm's, to every process: unshare before 2.36 would end, and all in there at once
  exec unshare --user --map-root-user --mount --propagation slave --ipc --pid --fork \
    --kill-child "$0" --namespaces "$$" "$UID" "${GROUPS[0]}" "$path_of_jobs" "$@"
fi
number=$2 uid=$3 gid=$4 path_of_jobs=$5
shift 5
what_to_run "$@"
own_directories "$number" "$@"

# show PATH [FROM]: it, or what is at FROM, is there.
show() {
  local from=${2:-$1}
  [ -e "$from" ] || return 0
  if [ -d "$from" ]; then
    mkdir -p "$ROOT$1"
  else
    mkdir -p "$ROOT${1%/*}" && { [ -e "$ROOT$1" ] || : > "$ROOT$1"; }
  fi && mount --rbind "$from" "$ROOT$1" || fail "$from cannot be shown"
}

# show_fixed PATH [FROM]: the same, and nobody can change it. What the mount forbids already must be said again.
show_fixed() {
  local options each as=remount,bind,ro
  show "$@"
  options=$(findmnt -nr -o VFS-OPTIONS -T "$ROOT$1")
  for each in ${options//,/ }; do
    case $each in nosuid | nodev | noexec | noatime | nodiratime | relatime) as+=,$each ;; esac
  done
  mount -o "$as" "$ROOT$1" || fail "$1 cannot be made read-only"
}

# own PATH: an empty directory.
own() { mkdir -p "$ROOT$1" || fail "no $1"; }

# --- the node's system, and nothing else of it
mount -t tmpfs -o mode=755,size=64m isolated "$ROOT" || fail 'no tmpfs'
for path in "${TOP[@]}"; do
  if [ -h "$path" ]; then cp -P "$path" "$ROOT$path"; else show "$path"; fi
done
for path in "${SYSTEM[@]}" /dev; do show "$path"; done
mount -t tmpfs -o mode=1777 isolated "$ROOT/dev/shm" || fail 'no /dev/shm'
mount -t devpts -o newinstance,ptmxmode=0666,mode=600 isolated "$ROOT/dev/pts" || fail 'no /dev/pts'
[ ! -e /dev/mqueue ] || mount -t mqueue isolated "$ROOT/dev/mqueue" || fail 'no /dev/mqueue'
own /proc
mount -t proc proc "$ROOT/proc" || fail 'no /proc'
show /tmp "$MINE/tmp"
show /var/tmp "$MINE/tmp"
show "$HOME" "$MINE/home"
ln -s ../run "$ROOT/var/run"
for path in "${SHOWN[@]}"; do show "$path"; done
# Once more, without what else is shown below them: to be emptied at the end.
own /.mine && mount --bind "$MINE" "$ROOT/.mine" || fail 'no directory to empty'

# --- of the pilot what a starter and its job need
for each in lock spool; do show "$PILOT_DIR/$each" "$MINE/$each"; done
show "$PILOT_DIR/log" "$LOG"
show "$JOB_DIR/execute" "$MINE/execute"
cp "$PILOT_DIR/condor_config" "$ROOT$PILOT_DIR/"
[ ! -e "$PILOT_DIR/SITECONF" ] || cp -r "$PILOT_DIR/SITECONF" "$ROOT$PILOT_DIR/"
show_fixed "$PILOT_DIR/address"
[ ! -e "$PILOT_DIR/condor" ] || show_fixed "$PILOT_DIR/condor"
# Nobody of the same user can look into the memory of a program that cannot be read. It has a key to the startd.
for each in "$STARTER" "$PROCD"; do show_fixed "$each" "$PILOT_DIR/unreadable/${each##*/}"; done

# Not pivot_root: Debian 14 has no such program. In a user namespace of its own a job can take nothing away of what
# lies over the node, and there it is who it was. Only the parent may say so here: by its exec the child has lost that.
mkfifo "$ROOT"/.{ready,go} && exec {ready}<> "$ROOT/.ready" {go}<> "$ROOT/.go" && rm "$ROOT"/.{ready,go} || fail 'no pipe'
# Or a job could put another /lib64 there, for what runs at the end.
mount -o remount,bind,ro "$ROOT" || fail 'the root directory cannot be made read-only'
# shellcheck disable=SC2016  # for the inner shells
cd "$ROOT" && mount --move . / && exec chroot . /bin/bash -c "$OTHER_PIDS"'
  path_of_jobs=$1 uid=$2 gid=$3 log=$4 number=$5 ready=$6 go=$7
  fail() { echo "isolation: $*" >&2; exit 1; }
  cd "$log" || fail "no log"
  # As condor_starter does for its job: where memory runs out, not the daemons.
  echo 800 > /proc/self/oom_score_adj
  set -m # or condor_starter would ignore SIGINT and SIGQUIT
  # Starters of the same pid would name a socket alike, for the network namespace is one (25.14, "Address already in use").
  { echo "$((number - 1))" > /proc/sys/kernel/ns_last_pid; } 2> /dev/null || other_pids "$number"
  unshare --user /bin/bash -c "
    echo >&$ready; read -r _ <&$go; exec $ready>&- $go>&-
    PATH=\$1 exec \"\${@:2}\"" starter "$path_of_jobs" "${@:8}" &
  child=$!
  read -r -t 30 _ <&"$ready" && echo deny > "/proc/$child/setgroups" && echo "$uid 0 1" > "/proc/$child/uid_map" \
    && echo "$gid 0 1" > "/proc/$child/gid_map" && echo >&"$go" || fail "no user namespace in the user namespace"
  exec {ready}>&- {go}>&-
  wait "$child"
  code=$?
  kill -KILL -1 2> /dev/null
  # What is left of the job; the directories themselves go with the next starter or the pilot.
  find /.mine -xdev -mindepth 2 -delete 2> /dev/null
  exit "$code"' starter "$path_of_jobs" "$uid" "$gid" "$PILOT_DIR/log" "$number" \
  "$ready" "$go" "${program[@]}"
fail 'the root directory cannot be changed'
