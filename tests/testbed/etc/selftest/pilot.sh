#!/bin/sh
#SBATCH --job-name=selftest_CVMFS
#SBATCH --account=INF24_lhc_2
#SBATCH --qos=qos_lowprio
#SBATCH --partition=dcgp_usr_prod
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=tmpfs:3t
#SBATCH --time=00:10:00
#SBATCH --output=pilot-%j.log
# Runs a startd until the job ends. Submitted from the directory that has pilot.conf.
set -eu
PILOT_DIR=$TMPDIR
export PILOT_DIR
for directory in log run lock spool execute tokens.d passwords.d; do
    mkdir -m 0700 "$PILOT_DIR/$directory"
done
chmod 0755 "$PILOT_DIR/execute"
cp "$HOME/.config/htcebridge/pilot.idtoken" "$PILOT_DIR/tokens.d/pilot"
export CONDOR_CONFIG="$SLURM_SUBMIT_DIR/pilot.conf"
exec condor_master -f
