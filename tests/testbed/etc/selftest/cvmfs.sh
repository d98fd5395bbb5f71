#!/bin/sh
#SBATCH --account=INF24_lhc_2
#SBATCH --partition=dcgp_usr_prod
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=100
#SBATCH --time=00:10:00
#SBATCH --output=%x.log
# Says what it sees below /cvmfs, when it starts and when it is told to end by a file.
see() { # ls and not test -d: to stat, afuse shows a directory of any name, and mounts nothing
    if ls "/cvmfs/$1" >/dev/null 2>&1; then echo "$1 there"; else echo "$1 missing"; fi
}
see cms.cern.ch
see unknown.cern.ch
if [ -e /cvmfs/datacloud.infn.it/repo ]; then
    set +u
    # shellcheck disable=SC1091  # it is on the nodes
    . /cvmfs/datacloud.infn.it/repo/wn-leonardo/v1/etc/profile.d/wn-leonardo-setup.sh
    echo "setup ${WN_LEONARDO:-none}"
fi
echo started
until [ -e "$SLURM_JOB_NAME.end" ]; do sleep 0.2; done
srun --overlap --ntasks=1 ls /cvmfs/cms.cern.ch
see cms.cern.ch
