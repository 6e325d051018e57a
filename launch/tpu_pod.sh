#!/usr/bin/env bash
# Runs one command on every machine of a TPU pod (Cloud TPU VMs).
#
#   launch/tpu_pod.sh TPU_NAME ZONE --config=configs/livec.py --workdir=/mnt/shared/livec
#
# The repository is copied from here to ~/cprl_jax on every machine and installed there with the extra [tpu]; the second
# time, only what changed. --workdir must be a folder that all machines see (Filestore, or a bucket mounted with gcsfuse).
# Interrupted, or a machine lost? The same command resumes from the last checkpoint.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
tpu=$1 zone=$2
shift 2
repository=$(cd "$(dirname "$0")/.." && pwd)

on_all() { gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
tar --directory="$repository" --exclude=.git --exclude=.venv --exclude=.cache --exclude=runs --exclude=tfds \
  --create --gzip --file="$archive" .
gcloud compute tpus tpu-vm scp "$archive" "$tpu:cprl_jax.tar.gz" --zone="$zone" --worker=all

on_all 'mkdir -p cprl_jax && tar --extract --gzip --file=cprl_jax.tar.gz --directory=cprl_jax &&
        cd cprl_jax && python3 -m venv .venv && .venv/bin/pip install --quiet --editable ".[tpu]"'

# A process that an interrupted start left behind would hold the TPU. (The brackets keep pkill from finding itself.)
on_all "pkill -KILL -f '[c]prl_jax.main' || true"

arguments=$(printf ' %q' "$@") # keeps every argument in one piece on its way through the remote shell
on_all "cd cprl_jax && CPRL_JAX_DISTRIBUTED=1 .venv/bin/python -u -m cprl_jax.main$arguments" || {
  echo "The run ended early; start the same command again to resume from the last checkpoint." >&2
  exit 1
}
