sbatch <<'END'
#!/bin/bash
#SBATCH --job-name=lr-db025c6b-0
#SBATCH --array=0-1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=/shared/sweeps/lr/logs/lr-db025c6b-0-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue

case "$SLURM_ARRAY_TASK_ID" in
  0) srun recursia train --config=vanilla:tiny '--config.eval.prompts=["it'"'"'s $(odd)"]' --config.train.seed=0 --workdir=/shared/sweeps/lr/trials/c51c939cc96b ;;
  1) srun recursia train --config=vanilla:tiny '--config.eval.prompts=["it'"'"'s $(odd)"]' --config.train.seed=1 --workdir=/shared/sweeps/lr/trials/5de5b384c116 ;;
esac
code=$?
if [ $code -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
END
