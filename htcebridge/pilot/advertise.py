"""Ads sent to the collector, and taken out of it, with the pilots' token: the controller's own may only read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from htcebridge.config.paths import EdgePath
from htcebridge.config.tables import Config
from htcebridge.errors import BridgeError, UnknownState
from htcebridge.templates import classad_string
from htcebridge.tier1 import pool as tier1_pool
from htcebridge.tier1 import tokens


def send(config: Config, token_file: EdgePath, ads: Sequence[str], gone: str, masters_too: bool = False) -> None:
    """Take away the startd ads that `gone` (a ClassAd constraint, or nothing) means, then send these (ClassAd text).

    `masters_too`: those of the pilots' masters and startd daemons as well. Raises ConfigError for a bad token,
    UnknownState if the collector does not take them.
    """
    token = token_file.path
    tokens.check_secret(token)
    with tempfile.TemporaryDirectory(prefix="htcebridge-") as directory:
        copy = Path(directory) / "pilot"
        copy.touch(mode=0o600)
        shutil.copyfile(token, copy)
        pool = tier1_pool.Pool(
            collector=config.tier1.joined,
            token_directory=Path(directory),
            timeout_s=config.tier1.timeout.total_seconds(),
        )
        request = {"ask": "advertise", "collector": pool.collector, "ads": list(ads), "gone": gone}
        try:
            tier1_pool.ask(pool, {**request, "masters_too": masters_too})
        except BridgeError as error:
            raise UnknownState(
                f"collector {pool.collector} took no ads: {error}; does {token} allow ADVERTISE_STARTD?"
            ) from None


def say_goodbye(config: Config, token_file: EdgePath, pilot_ids: Iterable[str]) -> None:
    """Take the ads of dead pilots out of the collector: they would be matched until they expire. Raises as `send`."""
    named = " || ".join(f"PilotJobId =?= {classad_string(id_)}" for id_ in pilot_ids)
    ours = f"PilotInstance =?= {classad_string(config.pressure.instance)}"
    send(config, token_file, [], f"{ours} && ({named})", masters_too=True)
