#!/usr/bin/env bash
# One machine, several processes of one run; each has one GPU.
#
#   experiments/pods/local.sh [--dry-run] PROCESSES --config FILE --workdir DIR
#
# What follows PROCESSES goes to experiments/train.py; the mesh must use all
# devices. On GPUs one process with all of them does as well, and needs no
# script. On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N gives
# each process N devices. Where one process fails the others end by themselves;
# SIGTERM to this script is sent on, and every process saves at the same step.
set -eu

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if ! [ "${1:-0}" -gt 0 ] 2>/dev/null; then
  echo "error: usage: $0 [--dry-run] PROCESSES --config FILE --workdir DIR" >&2
  exit 2
fi
count=$1; shift
train="$(dirname "$0")/../train.py"
address=${JAX_COORDINATOR_ADDRESS:-localhost:12355}

children=()
for ((index = 0; index < count; index++)); do
  command=(env "JAX_COORDINATOR_ADDRESS=$address" "JAX_NUM_PROCESSES=$count"
    "JAX_PROCESS_ID=$index" "CUDA_VISIBLE_DEVICES=$index"
    "${PYTHON:-python}" "$train" "$@")
  if [ "$dry_run" ]; then echo "${command[@]}"; continue; fi
  "${command[@]}" &
  children+=($!)
done

forward() { kill -TERM "${children[@]}" 2>/dev/null || true; }
trap forward TERM INT
code=0
for child in "${children[@]}"; do
  # A signal ends `wait` early: ask again until the child is gone.
  while :; do
    if wait "$child"; then status=0; else status=$?; fi
    kill -0 "$child" 2>/dev/null || break
  done
  if [ "$status" -ne 0 ]; then code=$status; fi
done
exit "$code"
