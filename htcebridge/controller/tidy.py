"""Now and then removes what is left of pilots that are gone: marks, logs, job directories, lines of the ledger."""

from __future__ import annotations

from dataclasses import replace

from htcebridge.config.tables import Config
from htcebridge.controller import leftovers, observe
from htcebridge.controller.observation import Near
from htcebridge.errors import BridgeError
from htcebridge.history import recording
from htcebridge.pilot import marks
from htcebridge.pilot.logs import prune_logs
from htcebridge.state.ledger import Ledger
from htcebridge.state.memory import Memory

_EVERY_S = 3600
_KEEP_LOGS_DAYS = 7
_KEEP_LOGS_BYTES = 2 * 1024**3


def tidy(config: Config, near: Near, memory: Memory) -> tuple[Memory, list[str]]:
    """Do it if it is due. Returns when it was done, and sentences for a person."""
    now = near.now
    if now - memory.upkeep.pruned < _EVERY_S:
        return memory, []
    try:
        for directory in observe.shared_directories(config, memory):
            marks.sweep(directory, near.listed, now)
            prune_logs(directory, _KEEP_LOGS_DAYS, _KEEP_LOGS_BYTES, near.listed)
        for scratch in {each.job_scratch for each in config.resources.values() if each.job_scratch}:
            leftovers.sweep(scratch.path, near.listed, now)
        Ledger(config).prune(now)
        recording.prune(config, now)
    except BridgeError as error:
        return memory, [str(error)]
    return replace(memory, upkeep=replace(memory.upkeep, pruned=now)), []
