#!/usr/bin/env bash
#SBATCH --job-name=${name}
#SBATCH --nodes=${nodes}
#SBATCH --ntasks-per-node=${tasks_per_node}
#SBATCH ${resources}
#SBATCH --time=${time}
#SBATCH --signal=USR1@${grace}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=${output}
#: config  experiment file, as for ablax train
#: workdir  the run's folder, on a file system that all nodes share
#: name=ablax  name of the job
#: nodes=1  machines
#: tasks_per_node=1  processes on each: 1 for all of its accelerators, or one for each accelerator
#: resources=--cpus-per-task=8  what a node must have, as in --gpus-per-node=8
#: time=24:00:00  limit of one start; the job goes on in the next
#: grace=150  seconds before the limit at which the run saves and ends; more than checkpoint.grace_seconds
#: output=ablax-%j.log  output of all starts
#: ablax=ablax  the command, as in /home/me/venv/bin/ablax
#: flags=--offline  more flags of ablax train
# A run that ends before it is finished and goes on when the job starts again: SLURM sends USR1 before the time limit
# and TERM when another job needs the nodes; ablax saves and exits with 75, and the job is queued again.
set -uo pipefail
# With handlers of its own this shell outlives the signals that are sent to the whole job; srun's tasks get them too.
trap : TERM USR1
# Ranks end together by themselves; a rank that cannot is ended a minute after the first.
srun --wait=60 --kill-on-bad-exit=0 ${ablax} train --config=${config} --workdir=${workdir} ${flags}
code=$$?
if [ "$$code" = 75 ]; then
  echo "preempted and saved: queued again" >&2
  scontrol requeue "$$SLURM_JOB_ID" && sleep 60 # the requeue ends this shell
fi
exit "$$code"
