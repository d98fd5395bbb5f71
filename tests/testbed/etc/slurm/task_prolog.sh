#!/bin/sh
# Leonardo gives each job a directory of its own on the node's disk.
scratch=/scratch_local/slurm_job.$SLURM_JOB_ID
mkdir -p "$scratch" && echo "export TMPDIR=$scratch"
