"""A server of a small federation in a process of its own."""

from __future__ import annotations

import time
from pathlib import Path

from helpers.federation import CLASSES, Federation, setting

from projects.vafl.joining import Listener
from projects.vafl.processes import SERVER_FILE, Clients, serve_on
from projects.vafl.recording import Recorder, Trace
from projects.vafl.serving import Plan, ServerProcess
from projects.vafl.settings import Delays


def federation(folder: str) -> Federation:
    """Return the federation that `serve` serves, as the clients see it."""
    plan = Plan(None, 10**6, 0.2, silence=1.0, patience=20.0)
    return Federation(Path(folder), setting(delays=Delays("constant", scale=0.02, floor=0.0)), plan)


def serve(folder: str, port: int, updates: int) -> None:
    """Serve until so many updates, writing a checkpoint all the time, and then the number of updates and of cycles into a file."""
    from projects.vafl import serving

    serving.SAVES_EVERY = 0.05
    played = federation(folder)
    plan = Plan(None, updates, 0.2, silence=1.0, patience=20.0)
    labels, keepers = (played.train.labels, played.test.labels), (Recorder(None, CLASSES), Trace(None))
    own = Listener("tcp", port=port), played.setting, played.terms, plan, played.model.head, labels, Path(folder, SERVER_FILE), *keepers
    process: ServerProcess = serve_on(*own)
    Path(folder, "outcome").write_text(f"{process.server.updates} {' '.join(map(str, process.cycles))}")


def parent_of_clients(folder: str) -> None:
    """Start clients whose server never comes, and write down their processes' numbers."""
    played = federation(folder)
    played.port = 1
    clients = Clients([played.member(number) for number in range(3)])
    Path(folder, "pids").write_text(" ".join(str(process.pid) for process in clients.processes))
    time.sleep(600)
