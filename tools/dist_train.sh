#!/usr/bin/env bash
# Train in several processes of this machine, or of several machines with NNODES, NODE_RANK, MASTER_ADDR and PORT.
# usage: tools/dist_train.sh CONFIG GPUS [ARGS OF train.py...]
# Without a GPU it starts GPUS processes on the CPU.
set -euo pipefail

USAGE="usage: $0 CONFIG GPUS [ARGS OF train.py...]"
CONFIG=${1:?$USAGE}
GPUS=${2:?$USAGE}
ROOT=$(cd "$(dirname "$0")/.." && pwd)
CORES=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
THREADS=$((CORES > GPUS ? CORES / GPUS : 1))

OMP_NUM_THREADS=${OMP_NUM_THREADS:-$THREADS} \
PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" \
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$ROOT/tools/train.py" "$CONFIG" --launcher pytorch "${@:3}"
