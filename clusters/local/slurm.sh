#!/bin/bash
#SBATCH --job-name=mimeo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
# Ray over a Slurm allocation for one run: sbatch clusters/local/slurm.sh VERB RECIPE --output FOLDER
# Submit it in the project's folder, on a file system that all nodes see. It ends its own processes only: `ray stop`, and
# `ray symmetric-run`, which calls it, would end every Ray of the host. Cut off, the same command goes on with the run.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: sbatch clusters/local/slurm.sh VERB RECIPE [--set KEY=VALUE ...] --output FOLDER" >&2
  exit 2
fi
verb=$1
shift

cd "${SLURM_SUBMIT_DIR:?is not set: start this by sbatch}"
export PATH="${MIMEO_VENV:-$PWD/.venv}/bin:$PATH"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

base=$((20000 + SLURM_JOB_ID % 2000 * 5)) # five ports of its own: two jobs on a host do not meet
temp="/tmp/mimeo-$SLURM_JOB_ID"           # short: socket paths have 107 bytes
umask 077
private="$HOME/.mimeo/slurm-$SLURM_JOB_ID"
mkdir -p "$private"
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token" RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=${HEAD_IP:-$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk 'NR == 1 {print $1}')}
gcs="$address:$base"

steps=()
driver=
# shellcheck disable=SC2329  # called by the trap
finish() {
  trap - EXIT TERM INT
  [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true
  for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
  wait || true
  srun --overlap --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" rm -rf "$temp" || true
  rm -rf "$private"
}
trap finish EXIT
trap 'exit 143' TERM INT

# Ray opens its folders to all users of a host, so they lie in one that only this user can enter. Its name can be foreseen: a
# folder or link of somebody else's there ends the job.
# shellcheck disable=SC2016  # each node's own shell expands it
inside='mkdir -p -m 700 "$1" && [ -O "$1" ] && [ ! -L "$1" ] && chmod 700 "$1" || { echo "error: $1: is not ours" >&2; exit 1; }'

# shellcheck disable=SC2016
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$inside"' && shift && exec "$@"' head "$temp" \
  ray start --head --block --node-ip-address="$address" --port="$base" --temp-dir="$temp/ray" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((base + 1)) --ray-client-server-port=$((base + 2)) \
  --dashboard-agent-listen-port=$((base + 3)) &
steps+=($!)
if [ "${#nodes[@]}" -gt 1 ]; then
  # shellcheck disable=SC2016  # the worker's own shell expands it
  srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" bash -c "$inside"'
    shift
    for _ in $(seq 60); do (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null && break; sleep 2; done
    exec ray start --block --address="$1:$2" --temp-dir="$3/ray" --dashboard-agent-listen-port="$4"
  ' worker "$temp" "$address" "$base" "$temp" $((base + 3)) &
  steps+=($!)
fi

python - "$gcs" "${#nodes[@]}" <<'PYTHON'
import sys
import time

import ray

address, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        break
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        if time.monotonic() > deadline:
            sys.exit(f"error: the head at {address} did not start: {error}")
        time.sleep(2)
while (up := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"error: {up} of {wanted} nodes are up after 300 s")
    time.sleep(2)
PYTHON

RAY_ADDRESS="$gcs" python -m "pipelines.$verb" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
driver=
exit "$code"
