#!/bin/sh
rm -rf "/scratch_local/slurm_job.$SLURM_JOB_ID"
