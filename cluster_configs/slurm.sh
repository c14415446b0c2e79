#!/bin/bash
# A run on a Slurm cluster: `sbatch slurm.sh my.yaml [key=value …]`. Edit the lines of #SBATCH; docs/operations.md, "Slurm".
# The job resumes after a requeue. Slurm requeues it when it is preempted or loses a node; before the time limit, this
# script stops the run, waits for its last checkpoints, and requeues the job itself.
#SBATCH --job-name=mode-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=48
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

config=${1:?usage: sbatch slurm.sh CONFIG [key=value ...]}
shift
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Of this job: several jobs may share a machine.
address=$head:$((20000 + SLURM_JOB_ID % 10000))
temporary=/tmp/ray-$SLURM_JOB_ID
cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
export SRUN_CPUS_PER_TASK=$cpus # srun does not take it over from the job
# Whoever has the token can run code as you. It is in the environment of this job's processes only.
RAY_AUTH_TOKEN=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN MALLOC_ARENA_MAX=2

steps=()
# shellcheck disable=SC2329  # by the trap
end_steps() {
  if ((${#steps[@]})); then
    kill "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
  fi
}
trap end_steps EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --port="${address#*:}" --num-cpus="$cpus" --temp-dir="$temporary" --dashboard-host=127.0.0.1 &
steps+=($!)
for ((attempt = 1; ; attempt++)); do
  if ray health-check --address "$address" >/dev/null 2>&1; then break; fi
  if ((attempt == 60)) || ! kill -0 "${steps[0]}" 2>/dev/null; then
    echo "slurm.sh: Ray's head did not start on $head: see the messages above" >&2
    exit 1
  fi
  sleep 2
done
workers=$((${#nodes[@]} - 1))
if ((workers > 0)); then
  srun --overlap --nodes="$workers" --ntasks="$workers" --ntasks-per-node=1 --exclude="$head" \
    ray start --block --address="$address" --num-cpus="$cpus" &
  steps+=($!)
fi

stopped=
RAY_ADDRESS=$address mode-ray run --config "$config" "$@" &
driver=$!
# The driver writes a checkpoint of every training run before it ends.
trap 'stopped=yes; kill -TERM "$driver" 2>/dev/null || true' TERM
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ended the wait, not the driver
  code=0
  wait "$driver" || code=$?
done
if [[ $stopped ]]; then
  echo "slurm.sh: stopped before the time limit; the job is requeued and resumes" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
