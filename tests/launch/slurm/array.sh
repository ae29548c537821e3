#!/bin/bash

# Parameters
#SBATCH --account=proj@lab
#SBATCH --array=0-4%3
#SBATCH --comment='a; b # é'
#SBATCH --constraint='a100&nvlink'
#SBATCH --cpus-per-task=6
#SBATCH --exclude='node[01-03]'
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:2
#SBATCH --hold
#SBATCH --job-name=little-abcdef-0
#SBATCH --mem=1536M
#SBATCH --nice=5
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output='/TMP/my outputs/sweeps/little/submissions/20260101-000000-abcdef/jobs/%A_%a_0_log.out'
#SBATCH --partition=gpu,spot
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --reservation=maintenance
#SBATCH --signal=USR2@300
#SBATCH --time=91

# setup
trap 'echo "setup failed with exit code $?: $BASH_COMMAND" >&2; exit 1' ERR
module load cuda/12.4
export DATA="$HOME/my data"
trap - ERR
export PYTHONSAFEPATH=1
export PYTHONPATH='/TMP/my outputs/code/0123'${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/TMP/my outputs/sweeps/little/submissions/20260101-000000-abcdef/jobs/%A_%a_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=6 sh -c 'trap "" USR2; exec "$@"' - srun-env python -s -u -m submitit.core._submit '/TMP/my outputs/sweeps/little/submissions/20260101-000000-abcdef/jobs'
