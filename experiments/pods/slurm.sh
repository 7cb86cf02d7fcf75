#!/usr/bin/env bash
# GPU nodes under Slurm: one process a GPU, JAX finds the others from Slurm.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 \
#     experiments/pods/slurm.sh --config FILE --workdir DIR
#   experiments/pods/slurm.sh --dry-run --config FILE --workdir DIR
#
# Submit it from the project's folder, on a disk that all nodes share, and so is
# the workdir. Slurm sends SIGTERM to every process two minutes before the end:
# they save, and the same sbatch continues.
#SBATCH --job-name=gft_jax
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -eu

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi

command=(srun --kill-on-bad-exit=0 env GFT_JAX_PROCESSES=auto
  .venv/bin/python experiments/train.py "$@")
if [ "$dry_run" ]; then echo "${command[@]}"; exit; fi
exec "${command[@]}"
