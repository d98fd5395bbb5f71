"""A bed between two files of tests: emptied, and compared with what it was like when it was new."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.e2e.chain import GATES, Chain, wait_until
from tests.testbed import Testbed, TestbedError

Standing = Mapping[str, frozenset[str]]

# What a test may have changed on any host: configuration, what was installed, mounts, a kernel setting, who has
# processes. One line for each thing. /opt/htcebridge* stays: the files that need it ask for it, and it is the same.
_HOST = """
cd /
find etc/condor* etc/slurm etc/htcebridge etc/systemd/system etc/cron.d etc/profile.d usr/lib/real usr/bin/sbatch \
  usr/share/condor-ce usr/local root home opt/[!h]* $1 -not -name known_hosts \
  \\( -type f -o -type l \\) -printf '%p %m %U %s\\n' -exec cksum '{}' + 2> /dev/null
[ -z "$1" ] || ls -A leonardo/home/leo leonardo/work/leo 2> /dev/null | sed 's/^/leo has /'
ls -A scratch_local 2> /dev/null | sed 's/^/scratch has /'
grep -o ' /cvmfs[^ ]* \\| /mnt[^ ]* \\| /leonardo/[^ ]* ' /proc/mounts | sed 's/^/mounted/'
sysctl net.ipv4.tcp_keepalive_intvl net.ipv4.tcp_keepalive_probes 2> /dev/null
[ -z "$1" ] || ps -eo user:32= | sort -u | sed 's/^/processes of /'
true
"""
# The masters of the bed's own hosts tell of themselves when they like, after a start.
_TIER1 = """
condor_status -any -af MyType Name \\
  | grep -v '^\\(Submitter\\|Accounting\\|Defrag\\|.*Grid\\|DaemonMaster \\(tier1\\|ce0[12]\\)\\.cr.example.org$\\)'
"""
_SLURM = """
squeue -h -a -o 'job %i'
sinfo -h -N -o 'node %N %t %E'
scontrol -o show reservations | grep -o 'ReservationName=[^ ]*'
sacctmgr -nP show qos
sacctmgr -nP show associations
true
"""
# The new bed has this at home, and nothing else.
_HOME = "htcebridge-venv .condor .config"
_EMPTY_HOME = f"""
cd /leonardo/home/leo && for each in $(ls -A); do case " {_HOME} " in *" $each "*) ;; *) rm -rf "./$each" ;; esac; done
cd .config && for each in $(ls -A); do [ "$each" = htcebridge ] || rm -rf "./$each"; done
find htcebridge -mindepth 1 -not -name htcebridge.toml -not -name pilot.idtoken -delete
rm -rf /leonardo/work/leo/* /leonardo/work/leo2/* /opt/htcebridge /etc/htcebridge
install -d -o leo {GATES}
find /root -mindepth 1 -not -name '.bash*' -not -name .profile -delete
"""
# A schedd opens its history for each job that leaves it.
_NOT_SKELETON = "-mindepth 1 -not -name '.bash*' -not -name .profile -delete"
_EMPTY_CE = f"""
rm -rf /etc/htcebridge
for home in /root /home/*; do find $home {_NOT_SKELETON}; done
for knob in '' /etc/condor-ce/condor_config; do
  [ -z "$knob" ] || export CONDOR_CONFIG="$knob"
  history=$(condor_config_val HISTORY) && [ ! -e "$history" ] || : > "$history"
done
"""


def standing(bed: Testbed) -> Standing:
    """What there is on each host, and what Slurm and the pool know."""
    asked = [(host, host, _HOST) for host in bed.hosts]
    shared = "leonardo/home/leo/.condor leonardo/home/leo/.config"  # by all hosts of the HPC: one looks
    asked += [("the pool", "tier1", _TIER1), ("Slurm", "hpcctl", _SLURM)]

    def answer(host: str, script: str) -> frozenset[str]:
        command = ["sh", "-c", script, "sh", shared if host == "edge" else ""]
        return frozenset(bed.on(host, command, timeout=60).stdout.splitlines())

    with ThreadPoolExecutor(max_workers=3) as pool:
        answers = {what: pool.submit(answer, host, script) for what, host, script in asked}
        return {what: each.result() for what, each in answers.items()}


def empty(chain: Chain, new: Standing) -> list[str]:
    """Empty a bed; what is not as it was when it was new. Nothing if it can be used again."""
    try:
        chain.clean()
        _sweep(chain.bed)
        last: list[str] = []

        def as_new() -> bool:
            last[:] = _differences(standing(chain.bed), new)
            return not last

        try:
            wait_until(as_new, 10, "the bed is as it was")
        except AssertionError:
            return last
    except (AssertionError, TestbedError) as error:
        return [str(error).partition("\n")[0]]
    return []


def _sweep(bed: Testbed) -> None:
    jobs = [("edge", _EMPTY_HOME), ("ce01", _EMPTY_CE), ("ce02", _EMPTY_CE)]
    jobs += [("tier1", f"condor_userprio -resetall > /dev/null; find /root {_NOT_SKELETON}")]
    with ThreadPoolExecutor(max_workers=3) as pool:
        for done in [pool.submit(partial(bed.on, host, ["sh", "-c", script], check=False)) for host, script in jobs]:
            done.result()


def _differences(now: Standing, new: Standing) -> list[str]:
    found = []
    for what in new:
        found += [f"{what}: there is {line}" for line in sorted(now[what] - new[what])]
        found += [f"{what}: there is no {line}" for line in sorted(new[what] - now[what])]
    return found
