sbatch <<'END'
#!/bin/bash
#SBATCH --job-name=pretrain
#SBATCH --array=0-1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=USR1@300
#SBATCH --output=/s/logs/pretrain-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue

export XLA_FLAGS='--a=1 --b='"'"'$HOME'"'"''
case "$SLURM_ARRAY_TASK_ID" in
  0) srun recursia train --config=mor:tiny '--config.eval.prompts=it'"'"'s $(odd),two' --workdir=gs://b/r ;;
  1) srun recursia train --config=mor:tiny --workdir=/s/b ;;
esac
code=$?
if [ $code -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 9 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
END
