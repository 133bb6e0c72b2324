#!/usr/bin/env bash
# EVA-01's giant on 16 machines of 8 GPUs:  sbatch examples/slurm.sh
#
# One task a machine; torchrun starts a process for each GPU and finds the others through the first
# machine. The batch is that of all processes. A machine that fails ends the job's step, and
# --requeue or a second `sbatch` goes on from the newest whole checkpoint (--resume auto): also on
# another number of machines.
#SBATCH --job-name=eva-g
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
# Five minutes before the end the processes are asked to stop: all write a checkpoint together.
#SBATCH --signal=TERM@300
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
  --nnodes="$SLURM_NNODES" --nproc-per-node=8 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" \
  -m eva_fast pretrain \
  --data '/data/merged-30m/shard-{00000..29999}.tar' \
  --model eva_g_patch14_224 --teacher /weights/ViT-L-14.pt \
  --out /checkpoints/eva-g --resume auto \
  --batch-size 4096 --drop-path 0.1 \
  --checkpoint-every 500 --keep-checkpoint-every 10000
