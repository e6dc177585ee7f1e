#!/bin/bash
# Ray over machines that ssh reaches: clusters/local/workstations.sh start|stop HOSTS
# HOSTS is a file with one ssh name a line; the first is the head. mimeo lies in the same folder on each: MIMEO_DIR, ~/mimeo
# when unset, with its .venv. It ends its own processes only: `ray stop` would end every Ray of the host.
set -euo pipefail

if [ $# -ne 2 ] || { [ "$1" != start ] && [ "$1" != stop ]; }; then
  echo "usage: clusters/local/workstations.sh start|stop HOSTS" >&2
  exit 2
fi
action=$1
mapfile -t hosts < <(sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$2")
[ "${#hosts[@]}" -gt 0 ] || {
  echo "error: $2: names no host; write one ssh name a line" >&2
  exit 2
}
base=${MIMEO_PORT:-26379}
name=${MIMEO_CLUSTER:-workstations}
folder=${MIMEO_DIR:-mimeo}
token="$HOME/.mimeo/$name.token"

# Run on a host: role, address of the head, base port, name, project's folder; the token comes on standard input.
# shellcheck disable=SC2016
begin='
  set -euo pipefail
  umask 077
  mkdir -p "$HOME/.mimeo"
  cat >"$HOME/.mimeo/$4.token.new"
  mv "$HOME/.mimeo/$4.token.new" "$HOME/.mimeo/$4.token"  # this host may be the one that it comes from
  cd "$5"
  own="$HOME/.mimeo/$4-$(hostname)"  # hosts may share a home folder
  pidfile="$own.pid"
  if [ -s "$pidfile" ] && grep -q "mimeo-$4" "/proc/$(cat "$pidfile")/cmdline" 2>/dev/null; then
    echo "is up already"
    exit 0
  fi
  export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.mimeo/$4.token" RAY_USAGE_STATS_ENABLED=0
  temp="/tmp/mimeo-$4-$(id -u)"  # Ray opens its folders to all users: they lie in one that only this user can enter
  mkdir -p "$temp"
  { [ -O "$temp" ] && [ ! -L "$temp" ] && chmod 700 "$temp"; } || { echo "$temp is not ours" >&2; exit 1; }
  options=(--block --temp-dir="$temp/ray" --dashboard-agent-listen-port=$(($3 + 3)))
  if [ "$1" = head ]; then
    options+=(--head --node-ip-address="$2" --port="$3" --dashboard-host=127.0.0.1 --dashboard-port=$(($3 + 1)) --ray-client-server-port=$(($3 + 2)))
  else
    options+=(--address="$2:$3")
  fi
  setsid nohup ray start "${options[@]}" >"$own.log" 2>&1 </dev/null &
  echo $! >"$pidfile"
  for _ in $(seq 60); do
    kill -0 "$(cat "$pidfile")" 2>/dev/null || { tail -n 5 "$own.log" >&2; exit 1; }
    grep -q "block forever" "$own.log" && exit 0
    sleep 1
  done
  echo "did not start in 60 s: $own.log" >&2
  exit 1
'
# shellcheck disable=SC2016
end='
  set -euo pipefail
  pidfile="$HOME/.mimeo/$1-$(hostname).pid"
  [ -s "$pidfile" ] || exit 0
  pid=$(cat "$pidfile")
  if grep -q "mimeo-$1" "/proc/$pid/cmdline" 2>/dev/null; then  # else the number belongs to somebody else by now
    kill -TERM "$pid"
    for _ in $(seq 30); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
  fi
  rm -rf "/tmp/mimeo-$1-$(id -u)" "$pidfile" "$HOME/.mimeo/$1.token"
'

quoted() { printf '%q ' "$@"; }

if [ "$action" = stop ]; then
  for ((i = ${#hosts[@]} - 1; i >= 0; i--)); do
    echo "${hosts[i]}: stopping"
    # shellcheck disable=SC2029  # quoted for the other side
    ssh "${hosts[i]}" "bash -c $(quoted "$end" mimeo "$name")" </dev/null
  done
  rm -f "$token"
  exit 0
fi

umask 077
mkdir -p "$HOME/.mimeo"
[ -s "$token" ] || python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token"
address=${HEAD_IP:-$(ssh "${hosts[0]}" hostname -I </dev/null | awk 'NR == 1 {print $1}')}
role="head"
for host in "${hosts[@]}"; do
  echo "$host: starting"
  # shellcheck disable=SC2029  # quoted for the other side
  ssh "$host" "bash -c $(quoted "$begin" mimeo "$role" "$address" "$base" "$name" "$folder")" <"$token"
  role="worker"
done
cat <<TEXT
The cluster is up. From here:
  ssh -N -L 8265:127.0.0.1:$((base + 1)) ${hosts[0]} &
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
  ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m pipelines.generate RECIPE --output FOLDER
TEXT
