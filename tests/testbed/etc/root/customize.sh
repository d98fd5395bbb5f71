#!/bin/sh
# Run by mmdebstrap on the new root directory ($1): accounts, the daemons' directories, a small empty MariaDB.
set -eu
root=$1

# Fixed numbers: the shared file system and the tests know them.
chroot "$root" groupadd --gid 30000 leonardo
chroot "$root" useradd --uid 30001 --gid leonardo --home-dir /leonardo/home/leo --no-create-home --shell /bin/bash leo
chroot "$root" useradd --uid 30002 --gid leonardo --home-dir /leonardo/home/leo2 --no-create-home --shell /bin/bash leo2
uid=31000
for account in cmspil001 cmspil002 atlpil001 alice001 bob001; do
    uid=$((uid + 1))
    chroot "$root" useradd --uid "$uid" --user-group --create-home --shell /bin/bash "$account"
done

own_dir() { # owner mode directory...
    owner=$1 mode=$2
    shift 2
    for directory; do
        chroot "$root" install -d -o "$owner" -g "$owner" -m "$mode" "$directory"
    done
}
own_dir condor 0755 /var/spool/condor /var/lib/condor/execute
own_dir condor 0755 /var/log/condor-ce /var/lib/condor-ce /var/lib/condor-ce/spool /var/lib/condor-ce/execute
own_dir condor 1777 /var/log/condor-ce/user
own_dir root 0700 /etc/condor/passwords.d /etc/condor/tokens.d
own_dir slurm 0755 /var/spool/slurmctld /var/log/slurm
own_dir root 0755 /var/spool/slurmd /etc/testbed

# Debian's datadir has a 100 MB redo log, and every bed would copy it into memory.
rm -rf "$root/var/lib/mysql"
own_dir mysql 0755 /var/lib/mysql
chroot "$root" mariadb-install-db --user=mysql --datadir=/var/lib/mysql --auth-root-authentication-method=socket \
    --skip-test-db --innodb-log-file-size=8M >/dev/null

# Two small CVMFS repositories: what a node's automounter shows below /cvmfs.
repository() { # name: pack what is below $content, and start anew
    chroot "$root" mksquashfs "${content#"$root"}" "/usr/share/testbed-cvmfs/$1.sqfs" -all-root -no-progress -quiet
    rm -rf "$content"
}
content=$root/tmp/repository
install -d -m 0755 "$root/usr/share/testbed-cvmfs"
install -d -m 0755 "$content/SITECONF/local/JobConfig"
echo 'export CMS_PATH=/cvmfs/cms.cern.ch' >"$content/cmsset_default.sh"
echo '<site-local-config/>' >"$content/SITECONF/local/JobConfig/site-local-config.xml"
repository cms.cern.ch
profile=$content/repo/wn-leonardo/v1/etc/profile.d
install -d -m 0755 "$profile"
echo 'export WN_LEONARDO=v1' >"$profile/wn-leonardo-setup.sh"
repository datacloud.infn.it
# One user's /cvmfs serves the jobs of all.
echo user_allow_other >>"$root/etc/fuse.conf"

# The keys of the packages are as old as the root directory: each bed writes its own munge key, and sshd's are made where
# one is started (ssh-keygen -A).
rm -f "$root/etc/munge/munge.key" "$root"/etc/ssh/ssh_host_*
# No resolver: the hosts know each other from /etc/hosts, and nothing else exists.
echo 'hosts: files' >"$root/etc/nsswitch.hosts"
sed -i '/^hosts:/d' "$root/etc/nsswitch.conf"
cat "$root/etc/nsswitch.hosts" >>"$root/etc/nsswitch.conf"
rm -f "$root/etc/nsswitch.hosts" "$root/etc/resolv.conf"
