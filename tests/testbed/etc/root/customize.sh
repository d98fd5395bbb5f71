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

# The munge key of the package is as old as the root directory; each bed writes its own.
rm -f "$root/etc/munge/munge.key"
# No resolver: the hosts know each other from /etc/hosts, and nothing else exists.
echo 'hosts: files' >"$root/etc/nsswitch.hosts"
sed -i '/^hosts:/d' "$root/etc/nsswitch.conf"
cat "$root/etc/nsswitch.hosts" >>"$root/etc/nsswitch.conf"
rm -f "$root/etc/nsswitch.hosts" "$root/etc/resolv.conf"
