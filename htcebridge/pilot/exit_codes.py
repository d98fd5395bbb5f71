"""What a pilot's exit code means: one table, from which script, checks, verdicts and docs/pilot.md are made."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from htcebridge.model import Fault


class PilotExit(IntEnum):
    """The codes in the order in which a pilot may come to them.

    `says` is what it means, `more` the rest of that sentence for docs/pilot.md, `fault` who is to blame, `hint` what to
    look at: Markdown. A manual glidein that comes to run its executor ends with the executor's own code instead.
    """

    says: str
    fault: Fault
    hint: str
    more: str

    def __new__(cls, code: int, says: str, fault: Fault, hint: str, more: str = "") -> PilotExit:
        self = int.__new__(cls, code)
        self._value_ = code
        self.says, self.fault, self.hint, self.more = says, fault, hint, more
        return self

    BILLED_OTHERWISE = (
        16,
        "Slurm would bill it to another account, QOS or partition than the resource says",
        Fault.CONFIGURATION,
        "who changed the job? `scontrol show job`; defaults and plug-ins of the cluster",
    )
    NO_END = 21, "Slurm does not say when the job ends", Fault.CONFIGURATION, "look at `scontrol show job` there"
    TOO_SHORT = (
        20,
        "less than a minute left after `margin`",
        Fault.CONFIGURATION,
        "a longer `walltime`, or `min_walltime` where it is set",
    )
    TOO_LITTLE_MEMORY = (
        22,
        "Slurm gave less memory than `memory_reserve`",
        Fault.CONFIGURATION,
        "check `memory`, `memory_reserve`",
    )
    NO_SCRATCH = (
        13,
        "no scratch space",
        Fault.NODE,
        "`scratch`, `job_scratch`, `gres`",
        ": not writable, less than `min_scratch` free, fewer than `min_inodes` files left; or a directory of the "
        "pilot's name is there already",
    )
    NO_CVMFS = (
        11,
        "a CVMFS repository of `cvmfs` does not mount",
        Fault.NODE,
        "the node's CVMFS; on Leonardo the job name decides about it",
        " within six tries (half a minute, or two and a half where it hangs)",
    )
    NO_COLLECTOR = (
        23,
        "the collector cannot be reached",
        Fault.NODE,
        "the node's network; the firewall of the HPC and of the Tier-1",
    )
    NO_CONNECTIVITY = (
        24,
        "a critical place of `[connectivity]` or `[data]` cannot be reached",
        Fault.NODE,
        "the same, or the place is down",
        ", or none of the doors that jobs read from",
    )
    SETUP_FAILED = (
        17,
        "the last of the `setup` lines failed",
        Fault.NODE,
        "run it by hand on such a node; append `|| true` if its status means nothing",
    )
    NO_TOKEN = (
        14,
        "the pilot token cannot be read",
        Fault.CONFIGURATION,
        "`token_file` must be on a file system that the node sees",
    )
    TOKEN_EXPIRES = (
        15,
        "the token expires before the pilot ends",
        Fault.CONFIGURATION,
        "get a new one from the Tier-1",
    )
    NO_HTCONDOR = (
        12,
        "no HTCondor",
        Fault.CONFIGURATION,
        "`condor`",
        ": no tarball, or no `condor_master` on `PATH`",
    )
    TOKEN_REFUSED = (
        28,
        "the collector does not take the token",
        Fault.POOL,
        "is it this pool's, is READ among its rights?",
    )
    CLOCK_OFF = 25, "the node's clock is more than `max_clock_skew` off the collector's", Fault.NODE, "the node"
    TOO_FEW_GPUS = 27, "fewer GPUs than `gpus`", Fault.NODE, "the node; `gres`"
    NO_ISOLATION = (
        26,
        "jobs cannot be isolated on this node, and `require_isolation` is set",
        Fault.NODE,
        "user namespaces for plain users (`user.max_user_namespaces`, AppArmor), or a setuid Apptainer; a `bind` that "
        "shows too much",
    )
    OWN_CHECK_FAILED = (
        29,
        "a check of the site's own failed",
        Fault.NODE,
        "its reason is in the log",
        ", with a code that is not 11 to 28",
    )
    NO_SHARED_DIR = (
        19,
        "`shared_dir` cannot be seen, so the kill switch cannot either",
        Fault.NODE,
        "the node's mount of the shared file system",
    )
    NO_EXECUTOR = (
        18,
        "(manual glideins) the `executor` is missing or not executable",
        Fault.CONFIGURATION,
        "`executor`",
    )
    DAEMON_DIED = (
        30,
        "`condor_master` ended by itself with an error, or the startd died three times",
        Fault.UNCLEAR,
        "the end of its logs is in the pilot's log",
    )
    NEVER_SEEN = (
        31,
        "it left by itself, and the collector had never shown it",
        Fault.NODE,
        "the token's rights, the firewall, the end of its logs",
    )
    GOOD = (
        0,
        "a good end",
        Fault.NOBODY,
        "",
        ": idle, end of life, drained, announced by Slurm, or told to leave",
    )

    @property
    def variable(self) -> str:
        """Its name in the shell."""
        return f"EXIT_{self.name}"


# What a check may end with, the site's own included; any other code of one becomes OWN_CHECK_FAILED.
OF_CHECKS = range(11, 29)
FAULTS: Mapping[int, Fault] = {each.value: each.fault for each in PilotExit}


def before_joining(code: int) -> bool:
    """Whether a pilot that ends with it never came to join."""
    return code in OF_CHECKS or code == PilotExit.OWN_CHECK_FAILED
