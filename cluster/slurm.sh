#!/bin/bash
# A run on Slurm: one Ray node on each of the job's nodes for as long as the run lasts, with a token of its own.
#
#   sbatch cluster/slurm.sh run.yaml --out /shared/runs/mine       # start and submit; the arguments are those of `unseen-ray prune`
#   tail -f unseen-ray-JOBID.log                                   # watch
#   scancel --signal=TERM --batch JOBID                            # stop; the same line goes on
#
# Many runs as an array: a line of points.txt holds the flags of one, such as `--folds 8 --score el2n`, and its folder is --out/LINE.
#
#   POINTS=points.txt sbatch --nodes=1 --array=1-"$(wc -l < points.txt)"%8 cluster/slurm.sh run.yaml --out /shared/runs/points
#
# Results are in `--out`, on storage that all nodes see. Load or activate the environment with unseen_ray before you call sbatch.
#SBATCH --job-name=unseen-ray
#SBATCH --output=unseen-ray-%j.log
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

if [ -n "${POINTS:-}" ]; then
    out=$(printf '%s\n' "$@" | sed -n '/^--out$/{n;p;}')
    mapfile -t point < <(sed -n "${SLURM_ARRAY_TASK_ID:?POINTS needs sbatch --array}p" "$POINTS" | xargs -n 1)
    set -- "$@" "${point[@]}" --out "${out:?POINTS needs --out FOLDER}/$SLURM_ARRAY_TASK_ID"
fi

state=$(mktemp --directory "${SLURM_SUBMIT_DIR}/.unseen-ray-${SLURM_JOB_ID}-XXXXXX")
trap 'kill "${driver:-}" 2>/dev/null || true; kill $(jobs -p) 2>/dev/null || true; rm -rf "$state"' EXIT
trap 'kill -TERM "${driver:-}" 2>/dev/null || true' TERM

(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32))' > "$state/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_USAGE_STATS_ENABLED=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 10000))
address="$head:$port"

on() { # on NODE COMMAND...: a step of one task there, in the background
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" "$@" &
}

on "$head" ray start --head --block --port="$port" --dashboard-host=127.0.0.1 --disable-usage-stats
for _ in $(seq 60); do
    ray health-check --address "$address" 2>/dev/null && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    on "$node" ray start --block --address="$address" --disable-usage-stats
done

unseen-ray prune "$@" --address "$address" &
driver=$!
code=0
wait "$driver" || code=$?
if kill -0 "$driver" 2>/dev/null; then # the signal came first: let the driver end
    wait "$driver" || code=$?
fi
exit "$code"
