#!/bin/bash
# run-checks join|cron SECONDS NAME...: run these checks of $PILOT_DIR/checks one after the other, each for so long at
# most. "join" ends at the first that fails, with its code and its reason as the last line on stderr. "cron" runs all
# and says at the end whether the node is healthy. What they and this print on stdout are ClassAd lines.
set -u
phase=$1 limit=$2
shift 2
export PHASE=$phase
code='' failed=''
# KILL, here and below: a child that is only just forked still has this shell's trap, and a TERM is lost on it.
trap 'end_all; exit 143' TERM

end_all() {
  local each
  for each in $(jobs -p); do kill -KILL -- "-$each" "$each"; done 2> /dev/null
}

# run CHECK: sets code and reason. A check that hangs in the kernel cannot be ended: nobody waits for it. Each is a
# process group, so that what it started ends with it.
run() {
  local out=$PILOT_DIR/checks/.out.$1 pid timer
  setsid "$PILOT_DIR/checks/$1" < /dev/null > "$out" 2> "$out.why" &
  pid=$!
  sleep "$limit" > /dev/null 2>&1 &
  timer=$!
  wait -n
  if kill -0 "$timer" 2> /dev/null; then
    { kill -KILL "$timer"; wait "$timer"; } 2> /dev/null
    wait "$pid"
    code=$?
    reason=$(tail -n 1 "$out.why")
    reason=${reason:-code $code}
  else
    # Or bash tells of its end.
    disown -a
    kill -KILL -- "-$pid" "$pid" 2> /dev/null
    code=$(code_of "$1") reason="no answer within $limit s"
  fi
  disown -a
}

# What a check ends with that has not ended: the first exit code that it names, or just a failure.
code_of() {
  local named
  named=$(sed -n 's/^readonly EXIT_[A-Z_]*=\([0-9]*\)$/\1/p' "$PILOT_DIR/checks/$1" | head -n 1)
  echo "${named:-1}"
}

said() { grep -E '^[A-Za-z_][A-Za-z0-9_]* = .' "$PILOT_DIR/checks/.out.$1"; }

found=''
for check in "$@"; do
  run "$check"
  name=${check%.*} name=${name#[0-9][0-9]-}
  [ "$code" -eq 0 ] && passed=true || passed=false
  found+=$(echo "PilotCheck_${name//[^A-Za-z0-9_]/_} = $passed"; said "$check")$'\n'
  [ "$passed" = false ] || continue
  failed=${failed:-$name: $reason}
  if [ "$phase" = join ]; then
    printf '%s' "$found"
    printf '%s\n' "$failed" >&2
    exit "$code"
  fi
done
printf '%s' "$found"
[ "$phase" = cron ] || exit 0
if [ -z "$failed" ]; then
  verdict=$'NODE_IS_HEALTHY = true\nPilotCheckFailed = undefined'
else
  failed=$(tr -dc '[:print:]' <<< "$failed" | tr '"\\$' "'/_" | cut -c1-300)
  verdict=$'NODE_IS_HEALTHY = false\nPilotCheckFailed = "'$failed'"'
fi
printf '%s\n' "$verdict"
# A startd shows what a check says with its next update only. The pilot's script makes one when this file is new: when
# the verdict has changed, or a yes or no of some check.
news=$(printf '%s\n' "$verdict"; grep -E ' = (true|false)$' <<< "$found" | sed 's/^/# /')
if [ "$news" != "$(cat "$PILOT_DIR/health.conf" 2> /dev/null)" ]; then
  printf '%s\n' "$news" > "$PILOT_DIR/health.new" && mv "$PILOT_DIR/health.new" "$PILOT_DIR/health.conf"
fi
