#!/usr/bin/env bash
# Train under slurm.
# usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...]
#        tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [ARGS OF train.py...]
set -euo pipefail

USAGE="usage: $0 PARTITION JOB_NAME CONFIG [WORK_DIR] [ARGS OF train.py...]"
PARTITION=${1:?$USAGE}
JOB_NAME=${2:?$USAGE}
CONFIG=${3:?$USAGE}
ARGS=("${@:4}")
if [[ $# -ge 4 && $4 != -* ]]; then
    ARGS=(--work-dir "$4" "${@:5}")
fi
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
ROOT=$(cd "$(dirname "$0")/.." && pwd)

OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_TASK} \
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
exec srun --partition="$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$ROOT/tools/train.py" "$CONFIG" --launcher slurm ${ARGS[@]+"${ARGS[@]}"}
