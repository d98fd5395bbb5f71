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

# Apptainer is in neither suite. Debian's unstable has one that needs nothing but what the suites have (1.4.5: libc6 2.38),
# and nothing else may come from there. Where that changes the root directory is made without it, and the tests that
# need it say so.
apptainer_from_unstable() {
    mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' "$root/etc/apt/sources.list" | head -n 1)
    echo "deb $mirror sid main" >"$root/etc/apt/sources.list.d/apptainer.list"
    printf 'Package: %s\nPin: release n=sid\nPin-Priority: %s\n\n' '*' -1 apptainer 500 \
        >"$root/etc/apt/preferences.d/apptainer"
    # Fetched as this machine's apt does, but installed in there: by itself apt-get would run this machine's dpkg.
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get update -qq &&
        APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install -qq -y --download-only apptainer &&
        chroot "$root" apt-get install -qq -y --no-download apptainer
}
# HTCondor's own packages have the image with which its startd tests for HasSIF; Debian's leave it out. To make one
# Apptainer needs a "/" that is a mount point.
sif_for_the_startds_test() {
    # shellcheck disable=SC2016
    unshare --mount sh -c 'mount --rbind "$1" "$1" && exec chroot "$1" apptainer --quiet build "$2.sif" "$3"' sh \
        "$root" /usr/libexec/condor/exit_37 /usr/libexec/condor/singularity_test_sandbox
}
{ apptainer_from_unstable && sif_for_the_startds_test; } || echo "no apptainer here" >&2
rm -f "$root/etc/apt/sources.list.d/apptainer.list" "$root/etc/apt/preferences.d/apptainer"

# The keys of the packages are as old as the root directory: each bed writes its own munge key, and sshd's are made where
# one is started (ssh-keygen -A).
rm -f "$root/etc/munge/munge.key" "$root"/etc/ssh/ssh_host_*
# No resolver: the hosts know each other from /etc/hosts, and nothing else exists.
echo 'hosts: files' >"$root/etc/nsswitch.hosts"
sed -i '/^hosts:/d' "$root/etc/nsswitch.conf"
cat "$root/etc/nsswitch.hosts" >>"$root/etc/nsswitch.conf"
rm -f "$root/etc/nsswitch.hosts" "$root/etc/resolv.conf"
# Empty, but there: Apptainer starts no container without it.
: >"$root/etc/resolv.conf"
