"""A federation in processes of this machine for the tables, with a client that may be killed in the middle."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from projects.vafl.processes import Clients, play
from projects.vafl.recording import Recorder
from projects.vafl.reproduction.setting import Case, Curve, built
from projects.vafl.serving import Plan, ServerProcess

SCALE = 0.05
"""Real seconds of a simulated one."""
FLOOR = 0.001
"""Least seconds of a real cycle."""
SILENCE = 2.0
"""Real seconds without a sign of life after which a client counts as gone."""


@dataclass(frozen=True)
class Crash:
    """A client that is killed by SIGKILL, and started again.

    Attributes:
        client: its number.
        after: real seconds of training before.
        away: real seconds until it is started again.
    """

    client: int
    after: float
    away: float


@dataclass(frozen=True)
class Launched:
    """What became of a training in processes.

    Attributes:
        curve: at real seconds; the ages and releases are the server's.
        longest_gap: longest real seconds between two updates of the server.
        while_away: updates that it took while a killed client was away.
        lost: how often it lost a client.
    """

    curve: Curve
    longest_gap: float
    while_away: int
    lost: int


def in_real_time(case: Case) -> Case:
    """Return a case whose clients really wait, every simulated second `SCALE` seconds long."""
    return replace(case, delays=replace(case.delays, scale=SCALE, floor=FLOOR))


def launch(case: Case, lr: float, seed: int, crash: Crash | None = None) -> Launched:
    """Train a case in processes of this machine, the server in this one.

    Args:
        case: of `in_real_time`; `World.seconds` and `World.every` are simulated seconds.
        lr: step size.
        seed: of the weights, the batches and the delays.
        crash: what befalls a client; None is nothing.
    """
    module, data = built(case, lr, seed)
    plan = Plan(case.world.seconds * SCALE, None, case.world.every * SCALE, silence=SILENCE, patience=120.0)
    recorder, fate, threads = Recorder(None, module.classes), _Fate(crash), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            own = module.setting(case.world.batch), module.model, data.train, data.test, plan, Path(folder)
            served = play(*own, recorder=recorder, watch=fate.watch)
    finally:
        torch.set_num_threads(threads)
    return Launched(_curve(recorder, served), served.longest_gap, fate.while_away, served.lost)


def _curve(recorder: Recorder, served: ServerProcess) -> Curve:
    rows, server = recorder.curve, served.server
    seconds, quality = [float(row["seconds"]) for row in rows], [float(row["accuracy"]) for row in rows]
    costs = server.updates, server.mean_age, server.oldest, int(server.releases.max()), rows[-1]["bytes_up"] / 1e6, max(served.cycles)
    return Curve(seconds, quality, quality[-1], *costs)


class _Fate:
    """Lets a crash come over a client.

    Args:
        crash: when and over whom; None never.

    Attributes:
        while_away: see `Launched`.
    """

    def __init__(self, crash: Crash | None) -> None:
        self.crash, self.while_away = crash, 0
        self._killed: tuple[float, int] | None = None
        self._is_back = False

    def watch(self, process: ServerProcess, clients: Clients) -> None:
        """Kill the client when its time has come, and start it again later."""
        if self.crash is None or self._is_back or not process.is_started:
            return
        if self._killed is None:
            if process.time >= self.crash.after:
                clients.kill(self.crash.client)
                self._killed = time.monotonic(), process.server.updates
            return
        moment, updates = self._killed
        self.while_away = process.server.updates - updates
        if time.monotonic() - moment >= self.crash.away:
            clients.restart(self.crash.client)
            self._is_back = True
