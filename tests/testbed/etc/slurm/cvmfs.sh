#!/bin/sh
# A node's CVMFS, as Leonardo's site hook gives it: /cvmfs is there while a job with CVMFS in its name is on the node.
#   cvmfs.sh take JOB     as the job's user, from TaskProlog: mounts it, unless another job has done so
#   cvmfs.sh leave JOB    as root, from Epilog: unmounts it, if no other job has it
#   cvmfs.sh boot         as root: forgets all jobs and unmounts it, as a node does that starts anew
# The automounter belongs to the user whose job came first, and outlives that job while others use it: it daemonizes,
# and proctrack/linuxproc does not find what is no descendant of the job's any more.
set -eu
PATH=/usr/sbin:/usr/bin
jobs=/run/cvmfs-jobs # a file for each job, and the lock: a job can't take what the last one is about to unmount
images=/usr/share/testbed-cvmfs

mine() { # the daemons of this node: the process numbers are those of all hosts
    pgrep --ns $$ --nslist mnt -x 'afuse|squashfuse'
}

exec 9<"$jobs"
flock --wait 20 9
case $1 in
    take)
        : >"$jobs/$2"
        if ! grep -q ' /cvmfs fuse' /proc/self/mounts; then
            mount="squashfuse -o allow_other $images/%r.sqfs %m"
            unmount="fusermount3 -u -z %m"
            # The daemons must not hold the lock, nor the pipe that Slurm reads.
            afuse -o "allow_other,timeout=300,mount_template=$mount,unmount_template=$unmount" /cvmfs \
                9<&- </dev/null >/dev/null 2>&1
        fi
        ;;
    leave | boot)
        # A job that was there before its node was booted is gone already.
        if [ "$1" = boot ]; then rm -f "$jobs"/*; else rm -f "$jobs/$2"; fi
        if [ -z "$(ls "$jobs")" ]; then
            # Killed, not asked: a process that sits in /cvmfs would hold an automounter that unmounts politely.
            mine | xargs --no-run-if-empty kill -KILL || : # one may have ended meanwhile
            # The repositories, mounted below a directory of afuse's, before /cvmfs.
            grep -E ' fuse\.(afuse|squashfuse) ' /proc/self/mounts | cut -d ' ' -f 2 | tac | while read -r point; do
                umount -l "$point"
            done
            rm -rf /tmp/afuse-*
        fi
        ;;
esac
