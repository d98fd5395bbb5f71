#!/bin/sh
#SBATCH --job-name=victim
#SBATCH --account=INF24_lhc_2
#SBATCH --qos=qos_lowprio
#SBATCH --partition=dcgp_usr_prod
#SBATCH --nodelist=lrdn0001
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:10:00
#SBATCH --output=victim-%j.log
# A low-priority job that writes down what it hears: the batch script's signals, and those of a step beside it.
trap 'echo "batch TERM $(date +%s)"' TERM
echo "start $(date +%s)"
# shellcheck disable=SC2016  # the step's own shell expands it
srun --overlap --ntasks=1 --cpus-per-task=1 --mem=0 sh -c \
    'trap "echo step TERM \$(date +%s); exit 0" TERM; echo step start; while :; do sleep 1; done' &
while :; do
    sleep 1
done
