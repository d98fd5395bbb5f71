"""Goodbyes of pilots that could not say them."""

from __future__ import annotations

import pytest

from htcebridge.config.tables import Config
from htcebridge.controller import ads, follow
from htcebridge.errors import UnknownState
from htcebridge.model import (
    EndedPilot,
    Outcome,
)
from htcebridge.state.memory import (
    Pilots,
)


def test_ads_of_pilots_that_slurm_has_ended_are_taken_out_and_no_others(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(ads.advertise, "say_goodbye", lambda *arguments: sent.append(arguments[1:]))
    ended = [EndedPilot(id_, "dcgp", "p", Outcome.NODE_FAILED, 1, 2, 3) for id_ in ("7_1", "7_2", "7_3")]
    dead = follow.dead_in_pool(Pilots(ended=tuple(ended)), frozenset({"7_1", "7_3", "7_9"}))
    assert dead == {"dcgp": ("7_1", "7_3")}
    assert ads.say_goodbyes(config, {**dead, "gone": ("8_1",)}) == []
    assert sent == [(config.resources["dcgp"].token_file, ("7_1", "7_3"))]


def test_a_collector_that_takes_no_goodbye_is_a_problem_and_stops_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnknownState("collector x took no ads")

    monkeypatch.setattr(ads.advertise, "say_goodbye", refuse)
    assert ads.say_goodbyes(config, {"dcgp": ("7_1",)}) == ["resource dcgp: collector x took no ads"]
