#!/bin/sh
# Leonardo gives each job a directory of its own on the node's disk, and CVMFS to those whose name asks for it.
scratch=/scratch_local/slurm_job.$SLURM_JOB_ID
mkdir -p "$scratch" && echo "export TMPDIR=$scratch"
case ${SLURM_JOB_NAME:-} in
    *CVMFS*) /etc/slurm/cvmfs.sh take "$SLURM_JOB_ID" >/dev/null ;;
esac
exit 0 # a job without CVMFS has to see for itself, as on Leonardo
