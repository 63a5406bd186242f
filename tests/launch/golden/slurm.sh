sbatch <<'END'
#!/bin/bash
#SBATCH --job-name=pretrain
#SBATCH --partition=gpu
#SBATCH --account=me
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=pretrain-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

export XLA_FLAGS='--a=1 --b='"'"'$HOME'"'"''
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
srun /s/env/bin/recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' \
  --workdir=gs://b/r
code=$?
if [ $code -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 9 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
END
