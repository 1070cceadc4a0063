#!/usr/bin/env bash
# Trains on a SLURM cluster, one or several nodes, and goes on by itself when it is pre-empted or runs out of time:
#   sbatch --nodes 2 scripts/slurm.sh --dataset rrsisd --model_id RMSIN --epochs 40
# Arguments go to train.py. Adapt the resources below; the environment is .venv, or VENV=path.
#SBATCH --job-name=referring
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
PYTHON="${VENV:-.venv}/bin/python"
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Two minutes before the end SLURM signals this script; train.py saves within seconds and the job queues again.
trap 'requeue=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' USR1
requeue=0
srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-4}" --max-restarts 3 \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$head_node:29400" \
    train.py --resume auto --save_every 500 "$@" &
wait $!
status=$?
if [ "$requeue" = 1 ]; then
    wait
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
