#!/bin/sh
if [ -e "/run/cvmfs-jobs/$SLURM_JOB_ID" ]; then
    /etc/slurm/cvmfs.sh leave "$SLURM_JOB_ID"
fi
rm -rf "/scratch_local/slurm_job.$SLURM_JOB_ID"
