#!/usr/bin/env bash
# A TPU pod slice: the same command on every worker of it.
#
#   TPU=my-slice ZONE=us-east5-b experiments/pods/tpu_pod.sh [--dry-run] \
#     --config FILE --workdir DIR
#
# The project lies in FOLDER (by default gft_jax) of every worker, with its
# dependencies and jax[tpu]; the workdir and --config are on a disk that all of
# them share, such as Filestore. JAX finds the other workers from the slice's
# own metadata. The same command continues after a preemption.
set -eu

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
: "${TPU:?name of the slice}" "${ZONE:?zone of the slice}"

arguments=$(printf ' %q' "$@")
command=(gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all
  --command="cd ${FOLDER:-gft_jax} && GFT_JAX_PROCESSES=auto \
.venv/bin/python experiments/train.py$arguments")
if [ "$dry_run" ]; then printf '%s\n' "${command[*]}"; exit; fi
exec "${command[@]}"
