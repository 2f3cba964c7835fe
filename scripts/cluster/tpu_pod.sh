#!/usr/bin/env bash
#: config  experiment file, as for ablax train
#: workdir  the run's folder, on a file system that all workers mount (Filestore, or a bucket through gcsfuse)
#: tpu=ablax  name of the TPU VM or pod slice; made if it is not there
#: type=v5litepod-16  its accelerator type
#: version=v2-alpha-tpuv5-lite  its runtime version
#: zone=us-west4-a  its zone
#: provision=--spot  how it is charged: --spot or --reserved
#: install=ablax[tpu]  what pip installs on each worker
#: flags=--start-timeout=600  more flags of ablax train
# Runs ablax train on every worker of a Cloud TPU slice, which find each other, and makes the slice again when Google
# took it away. Runs where gcloud is logged in.
set -uo pipefail
tpu=(gcloud compute tpus tpu-vm)
where=(--zone='${zone}')

ready() { [ "$$("$${tpu[@]}" describe '${tpu}' "$${where[@]}" --format='value(state)' 2>/dev/null)" = READY ]; }

while true; do
  if ! ready; then
    "$${tpu[@]}" delete '${tpu}' "$${where[@]}" --quiet 2>/dev/null
    "$${tpu[@]}" create '${tpu}' "$${where[@]}" --accelerator-type='${type}' --version='${version}' ${provision} || {
      sleep 60
      continue
    }
    "$${tpu[@]}" ssh '${tpu}' "$${where[@]}" --worker=all \
      --command="python3 -m venv ~/ablax && ~/ablax/bin/pip install --quiet '${install}'" || exit 1
  fi
  "$${tpu[@]}" ssh '${tpu}' "$${where[@]}" --worker=all \
    --command="~/ablax/bin/ablax train --config=${config} --workdir=${workdir} --platform=tpu ${flags}"
  code=$$?
  # 75: saved, run again. A slice that is gone ended the run without asking; the newest checkpoint is good.
  if [ "$$code" != 75 ] && ready; then
    exit "$$code"
  fi
done
