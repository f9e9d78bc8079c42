#!/bin/bash
# Train on several machines of a Slurm cluster, until all is done:
#
#   sbatch tools/slurm.sh --config-file configs/POTO-3DMF.yaml OUTPUT_DIR output/run [KEY VALUE ...]
#
# Edit the lines with #SBATCH, nothing else. Start it in the checkout, which must lie where all
# machines see it, as must OUTPUT_DIR. PYTHON names another Python than that of .venv.
# docs/several-machines.md has the rest.

#SBATCH --job-name=defcn
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
#SBATCH --nodes=2
# A process for each GPU. Each must see all GPUs of its machine: no --gpus-per-task.
#SBATCH --gres=gpu:8
#SBATCH --ntasks-per-node=8
# DATALOADER.NUM_WORKERS and a few.
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
# It goes on after a preemption or the end of its time. So many seconds before that it is told,
# for the step at work and a checkpoint.
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

if [[ -z ${SLURM_JOB_ID:-} || -z ${SLURM_NTASKS_PER_NODE:-} ]]; then
    echo "error: start this by sbatch, with --ntasks-per-node" >&2
    exit 2
fi

PYTHON=${PYTHON:-.venv/bin/python}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}                  # the first
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # one for each of the jobs that share a machine
RESUMABLE=75                                  # train_net.py: all is saved, start me again
folder=$(mktemp -d)                           # on the machine of the first process
STOPPED=$folder/stopped
trap 'rm -rf "$folder"' EXIT
export PYTHON MASTER_ADDR MASTER_PORT RESUMABLE STOPPED
# srun does not take it from sbatch by itself.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# Slurm signals shells as well, which have to wait and see how the program ends.
trap : USR1 TERM

# What each process is told of the others, as torchrun does. One that is resumable is no failure:
# srun would kill the others for it, which end by themselves.
# shellcheck disable=SC2016
task='
    trap : USR1 TERM
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    status=0
    "$PYTHON" train_net.py --resume "$@" || status=$?
    if ((status == RESUMABLE)); then
        ((RANK)) || touch "$STOPPED"
        exit 0
    fi
    exit "$status"
'
status=0
srun --kill-on-bad-exit=1 bash -c "$task" task "$@" || status=$?

if ((status == 0)) && [[ -e $STOPPED ]]; then
    status=$RESUMABLE
    echo "job $SLURM_JOB_ID was stopped before its end, and goes on later"
    scontrol requeue "$SLURM_JOB_ID" || echo "error: not requeued; start it again by sbatch" >&2
fi
exit "$status"
