#!/usr/bin/env bash
# GPU nodes of GKE, or of another Kubernetes: an indexed Job, one pod a node.
#
#   NAME=run1 IMAGE=... CLAIM=... experiments/pods/gke.sh [--dry-run] PODS \
#     --config FILE --workdir /runs/run1
#
# IMAGE holds the project at its working folder. CLAIM is a persistent volume
# claim that all pods may write (ReadWriteMany, such as Filestore), mounted at
# /runs. GPUS (by default 8) are those of a node. A pod that fails takes the
# others with it; Kubernetes starts them again, and they continue.
set -eu

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
: "${NAME:?name of the job}" "${IMAGE:?container image}" "${CLAIM:?volume claim}"
if ! [ "${1:-0}" -gt 0 ] 2>/dev/null; then
  echo "error: usage: $0 [--dry-run] PODS --config FILE --workdir DIR" >&2
  exit 2
fi
pods=$1; shift
command=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \
  python experiments/train.py "$@")

job=$(cat <<YAML
apiVersion: v1
kind: Service
metadata: {name: $NAME}
spec:
  clusterIP: None
  selector: {job-name: $NAME}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $NAME}
spec:
  completionMode: Indexed
  completions: $pods
  parallelism: $pods
  backoffLimit: 100
  template:
    spec:
      subdomain: $NAME
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
      - name: train
        image: $IMAGE
        command: $command
        env:
        - {name: JAX_COORDINATOR_ADDRESS, value: "$NAME-0.$NAME:12355"}
        - {name: JAX_NUM_PROCESSES, value: "$pods"}
        - name: JAX_PROCESS_ID
          valueFrom:
            fieldRef:
              fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
        resources:
          limits: {nvidia.com/gpu: ${GPUS:-8}}
        volumeMounts:
        - {name: runs, mountPath: /runs}
      volumes:
      - name: runs
        persistentVolumeClaim: {claimName: $CLAIM}
YAML
)
if [ "$dry_run" ]; then echo "$job"; exit; fi
echo "$job" | kubectl apply -f -
