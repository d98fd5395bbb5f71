"""What sbatch's refusals mean for whoever wants to submit again. Pure.

The texts are those of Slurm's src/common/slurm_errno.c (26.05) and of sbatch itself; they have been stable since
20.02. tests/slurm_outputs has them as 22.05, 24.11 and 26.05 print them.
"""

from __future__ import annotations

import re

from htcebridge.model import Wait
from htcebridge.slurm.text import Answer
from htcebridge.slurm.waits import is_known, wait_of

# In this order: the request may have arrived in spite of every other line.
_TEXTS = (
    (
        Answer.UNKNOWN,
        (
            "Socket timed out on send/recv operation",
            r"Unable to contact slurm controller \((receive|send|shutdown) failure\)",
            "Zero Bytes were transmitted or received",
            "Message (receive|send) failure",
            "Communication shutdown failure",
            "Connection timed out (reading|writing)",
            "Connection forced closed by quiesce timeout",
            "Connection reset by peer",
            "Broken pipe",
            "Unexpected message received",
            "Insane message length",
            "Duplicate job id",
            "Header lengths are longer than data received",
        ),
    ),
    (
        Answer.OUTAGE,
        (
            "Unable to contact slurm controller",
            "Connection refused",
            "Connection timed out",
            "Communication connection failure",
            "Unable to resolve",
            "No route to host",
            "Network is unreachable",
            "Can't find an address, check slurm.conf",
            "in standby mode",
            "Protocol authentication error",
            "[Mm]unge encode failed|munge.socket",
            "Incompatible versions of client and server code",
            r"Required partition not available \(inactive or drain\)",
            "Partition in DOWN state",
            "System submissions disabled",
            "Requested operation is presently disabled",
            "Required node not available",
            "Requested reservation not usable now",
            "Job can not start due to maintenance reservation",
        ),
    ),
    (
        Answer.BACK_OFF,
        (
            "Rate limit exceeded",
            "Resource temporarily unavailable",
            "temporarily unable to accept job",
            "MaxJobCount limit reached",
            "Required ports are in use",
            "Job can not be altered now, try again later",
            "Individual job submission scheduling attempts deferred",
        ),
    ),
    (
        Answer.LIMIT,
        (
            "Job violates accounting/QOS policy",
            "breached requested QOS usage threshold",
            "Burst Buffer resource limit exceeded",
        ),
    ),
    (
        Answer.CONFIG,
        (
            "Invalid (account|qos|partition|user|group|feature|wckey|license|generic resource|GRES|burst|mcs_label)",
            "Invalid (job array|time|time-min|Trackable|preferred|extra|QOS|node name|--|or unknown association)",
            "Invalid.* specification",
            "invalid partition specified",
            "No partition specified or system default partition",
            "Requested partition configuration not available now",
            "Requested node configuration is not available",
            "Requested time limit is invalid",
            "Requested nodes not in this partition",
            "Access denied to requested reservation",
            "Requested reservation is invalid",
            "Access/permission denied",
            "User's group not permitted to use this partition",
            "Memory (specification|required by task)",
            "More processors requested than permitted",
            "(Node|CPU|Task) count specification invalid",
            "Job size specification needs to be provided",
            "Task distribution specification invalid",
            "Duplicate generic resource",
            "Requested GRES option unsupported",
            "Only batch jobs are accepted|Requested operation not supported on this system",
            "Job dependency problem|Circular job dependency",
            "Pathname of a file, directory or other parameter too long",
            "Batch script (is empty|contains)|This does not look like a batch script|Job script not specified",
            "Unable to open file",
            "unrecognized option|invalid option|requires an argument",
        ),
    ),
)
_CLASSES = tuple((answer, re.compile("|".join(texts))) for answer, texts in _TEXTS)
# Newer releases name the limit on a line of its own before the general text.
_NAMED_LIMIT = re.compile(r"^sbatch: error: ([A-Za-z]+)$", re.MULTILINE)


def classify(stderr: str) -> Answer:
    """What sbatch's error output means. A text that is not known is TRANSIENT; silence is UNKNOWN."""
    if not stderr.strip():
        return Answer.UNKNOWN
    answer = next((answer for answer, pattern in _CLASSES if pattern.search(stderr)), Answer.TRANSIENT)
    return Answer.CONFIG if answer is Answer.LIMIT and _never_passes(stderr) else answer


def _never_passes(stderr: str) -> bool:
    """Whether the limit is one on the size or length of a single job."""
    names = [name for name in _NAMED_LIMIT.findall(stderr) if is_known(name)]
    return any(wait_of(name, "PENDING") is Wait.NEVER for name in names)


_GONE = re.compile(r"scancel: error: Kill job error on job id \S+: (Invalid job id|Job/step already completing)")


def only_gone(said: str) -> bool:
    """Whether scancel had nothing to complain of but jobs that are not there any more."""
    return 0 < said.count("scancel: error:") == len(_GONE.findall(said))
