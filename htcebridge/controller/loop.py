"""The loop around the cycle: `pressure run`, as systemd starts it."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from htcebridge import logs
from htcebridge.config import file
from htcebridge.config.tables import Config
from htcebridge.controller import ads, cycle, observe
from htcebridge.controller.notify import Notifier
from htcebridge.errors import BridgeError, ConfigError, ExitCode, LockHeld
from htcebridge.history.result import CycleResult
from htcebridge.metrics import export
from htcebridge.model import Plan
from htcebridge.plan import planner
from htcebridge.report import live, web
from htcebridge.state.lock import ControllerLock
from htcebridge.state.memory import recall

log = logging.getLogger("htcebridge")


def run(path: Path, record: Path | None = None, say: Callable[[str], None] = log.info, http: str | None = None) -> None:
    """Cycle for ever, until SIGTERM or SIGINT; both end it between two cycles. SIGHUP cycles at once.

    `http`: "HOST:PORT" at which the live report and the metrics are served meanwhile.
    The file is read again before every cycle; a broken one is reported and the last good one kept. Raises ConfigError
    for what would fail from the start, LockHeld if another controller takes over.
    """
    config = file.load(path)
    wake, ending = threading.Event(), threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        ending.set()
        wake.set()

    def now(signum: int, frame: FrameType | None) -> None:
        wake.set()

    for signum, handler in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGHUP, now)):
        signal.signal(signum, handler)
    notifier = Notifier.from_environment()
    latest = export.Latest()
    pages = {**live.pages(lambda: config), "/metrics": lambda: web.Answer(export.CONTENT_TYPE, latest.metrics())}
    with ControllerLock(config) as lock, web.serving(http, pages):
        observe.check_start(config)
        say(f"controller {config.pressure.instance} runs, {config.pressure.pace}")
        notifier.ready()
        known: tuple[str, ...] = ()
        while not ending.is_set():
            config, complaint = _reread(path, config)
            result = _surviving_cycle(config, lock, record)
            problems = (*((complaint,) if complaint else ()), *result.problems, *_shown(config, result, latest))
            for problem in problems:
                if problem not in known:
                    logs.event("problem", logging.WARNING, plan=result.plan_id or "-", why=problem)
            if known and not problems:
                log.info("all is well again")
            known = problems
            notifier.status(_status(result.plan, problems))
            _sleep(config, wake, ending, notifier)
        notifier.stopping()
        ads.withdraw_ghosts(config)
    say(f"controller {config.pressure.instance} ended; its pilots live on and leave when they are idle")


def _sleep(config: Config, wake: threading.Event, ending: threading.Event, notifier: Notifier) -> None:
    """Until the next cycle: an interval give or take a tenth, so that controllers do not fall into step; at once when
    woken, but never sooner than min_interval after the last look at Slurm."""
    interval_s = config.pressure.interval.total_seconds()
    until = time.monotonic() + interval_s * random.uniform(0.9, 1.1)  # noqa: S311  no secret
    earliest = time.monotonic() + config.pressure.min_interval.total_seconds()
    while True:
        notifier.alive()
        now = time.monotonic()
        if ending.is_set() or now >= max(until, earliest) or (wake.is_set() and now >= earliest):
            wake.clear()
            return
        left = earliest - now if wake.is_set() else max(until, earliest) - now
        most = notifier.watchdog_s / 3 if notifier.watchdog_s else left
        (ending if wake.is_set() else wake).wait(max(0.0, min(left, most)))


def _status(plan: Plan, problems: Sequence[str]) -> str:
    """One line for `systemctl status`."""
    if plan.held:
        return f"held: {plan.held}"
    counts = [
        f"{name}: {each.running} joined, {each.booting} booting, {each.pending} pending"
        for name, each in plan.resources.items()
    ]
    return "; ".join([*counts, *problems[:1]])


def _surviving_cycle(config: Config, lock: ControllerLock, record: Path | None) -> CycleResult:
    """A cycle whose failure must not end the controller. Raises LockHeld if another one has taken over."""
    try:
        lock.renew()
        return cycle.cycle(config, lock, record)
    except LockHeld:
        raise
    except BridgeError as error:
        why = str(error)
    except Exception as error:
        log.exception("a cycle failed; the next one starts afresh")
        why = f"a cycle failed: {error}"
    return CycleResult(planner.hold(why, config.resources), "", (why,), ExitCode.PROBLEM, memory=recall(config))


def _shown(config: Config, result: CycleResult, latest: export.Latest) -> list[str]:
    """Hand a cycle's numbers out. Whatever fails there must not end the controller either."""
    try:
        latest.update(config, result)
        return export.write_textfile(config, result)
    except Exception as error:
        log.exception("the metrics failed; the next cycle tries again")
        return [f"metrics are not written: {error}"]


def _reread(path: Path, last_good: Config) -> tuple[Config, str | None]:
    try:
        config = file.load(path)
    except ConfigError as error:
        return last_good, f"the last good configuration stays in force: {error}"
    if config.pressure.instance != last_good.pressure.instance:
        return last_good, "pressure.instance cannot change while the controller runs: restart it"
    return config, None
