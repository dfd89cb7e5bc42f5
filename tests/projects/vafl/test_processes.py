import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import served
from helpers.federation import model, records, setting
from helpers.processes import start

from projects.vafl.data import VerticalRecords
from projects.vafl.federation import Setting
from projects.vafl.module import build_model
from projects.vafl.processes import SERVER_FILE, client_file, play
from projects.vafl.serving import Plan
from projects.vafl.settings import Delays, Protection, Protocol
from shared.checkpoints import load_checkpoint

STEADY = Delays("constant", scale=0.02, floor=0.0)


def test_a_killed_client_is_not_waited_for_and_comes_back_as_another_process(tmp_path):
    """SIGKILL in the middle, under a budget; the others go on at once, and the ledger of the one that comes back holds all that was sent."""
    seen = {}

    def watch(process, clients):
        if "killed" not in seen and process.server.updates > 150:
            seen["former"] = process.hub.peers[1].incarnation
            clients.kill(1)
            seen["killed"], seen["sent"] = process.server.updates, torch.from_numpy(process.server.releases[1].copy())
        if "killed" in seen and "back" not in seen and process.server.updates > seen["killed"] + 100:
            seen["gone"] = 1 not in process.hub.peers
            clients.restart(1)
            seen["back"] = process.server.updates
        if "back" in seen and 1 in process.hub.peers and "cycles" not in seen:
            seen["new"], seen["cycles"] = process.hub.peers[1].incarnation, process.cycles[1]
        if "cycles" in seen and process.cycles[1] > seen["cycles"] + 10:
            process.plan = replace(process.plan, updates=process.server.updates + 20)

    chosen = setting(delays=STEADY, protection=Protection(std=0.2, clip=4.0))
    plan = Plan(None, 10**6, 0.5, silence=1.0, patience=20.0)
    process = play(chosen, model(clip=4.0), *records(), plan, tmp_path, watch=watch)
    assert seen["gone"]
    assert process.lost == 1
    assert seen["new"] != seen["former"]
    assert process.longest_gap < 0.5
    own = load_checkpoint(client_file(tmp_path, 1))["client"]["releases"]
    assert bool((own >= torch.from_numpy(process.server.releases[1])).all())
    assert bool((process.attendance.counted[1] >= own).all())  # with its journal
    assert process.recorder.curve[-1]["accuracy"] > 0.75


@pytest.mark.parametrize(("clock", "killed"), [("virtual", [1]), ("wall", [0, 1, 2])], ids=["virtual", "all"])
def test_a_training_that_cannot_go_on_without_the_killed_ends_at_once(tmp_path, clock, killed):
    def watch(process, clients):
        if process.server.updates > 10:
            for number in killed:
                clients.kill(number)

    plan = Plan(None, 10**6, 0.5, clock, silence=1.0, patience=20.0)
    with pytest.raises(ValueError, match=r"client 1 \(signal 9\).* was ended from outside"):
        play(setting(delays=STEADY), model(), *records(), plan, tmp_path, watch=watch)


def test_a_stopped_client_counts_as_gone_and_comes_back_by_itself(tmp_path):
    """SIGSTOP: its connection stays, but nothing comes of it."""
    seen = {}

    def watch(process, clients):
        pid = clients.processes[1].pid
        if "stopped" not in seen and process.server.updates > 100:
            os.kill(pid, signal.SIGSTOP)
            seen["stopped"] = process.time
        if "stopped" in seen and "gone" not in seen and 1 not in process.hub.peers:
            seen["gone"] = process.time
            os.kill(pid, signal.SIGCONT)
        if "gone" in seen and "cycles" not in seen and 1 in process.hub.peers:
            seen["cycles"] = process.cycles[1]
        if "cycles" in seen and process.cycles[1] > seen["cycles"] + 10:
            process.plan = replace(process.plan, updates=process.server.updates + 20)

    plan = Plan(None, 10**6, 0.5, silence=0.6, patience=20.0)
    process = play(setting(delays=STEADY), model(), *records(), plan, tmp_path, watch=watch)
    assert 0.5 < seen["gone"] - seen["stopped"] < 1.5
    assert process.lost == 1
    assert process.longest_gap < 0.5


def test_a_killed_server_is_waited_for_and_no_answer_is_given_twice(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = start(served.serve, str(tmp_path), port, 10**6)
    played = served.federation(str(tmp_path))
    played.port = port
    clients = played.join_all()
    played.wait(lambda: min(client.client.cycle for client in played.clients.values()) > 20 and (tmp_path / SERVER_FILE).is_file(), 60)
    os.kill(server.pid, signal.SIGKILL)
    server.join(10)
    kept = load_checkpoint(tmp_path / SERVER_FILE)["server"]
    cycles = [client.client.cycle for client in played.clients.values()]
    goal = kept["server"]["updates"] + 100
    again = start(served.serve, str(tmp_path), port, goal)
    for client in clients:
        client.outcome(60)
    again.join(20)
    updates, *counted = map(int, Path(tmp_path, "outcome").read_text().split())
    assert updates == goal == sum(counted)
    for number, client in played.clients.items():
        since = counted[number] - kept["cycles"][number]
        assert 0 <= client.client.cycle - cycles[number] - since + 1 <= 2  # every step of the new server is one of the client's, once


@pytest.mark.slow
def test_processes_end_with_their_parent(tmp_path):
    parent = start(served.parent_of_clients, str(tmp_path))
    file = tmp_path / "pids"
    deadline = time.monotonic() + 60
    while not (file.is_file() and len(file.read_text().split()) == 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(pid) for pid in file.read_text().split()]
    os.kill(parent.pid, signal.SIGKILL)
    parent.join(10)
    while any(Path("/proc", str(pid)).exists() and "Z" not in Path("/proc", str(pid), "stat").read_text().split()[2] for pid in pids):
        assert time.monotonic() < deadline, "a client goes on"
        time.sleep(0.02)


def test_a_client_that_cannot_begin_ends_the_launch(tmp_path):
    chosen = setting(delays=Delays(compute="trace:nowhere.csv"))
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.csv"):
        play(chosen, model(), *records(), Plan(1.0, None, 0.5, silence=1.0, patience=5.0), tmp_path)


@pytest.mark.slow
def test_a_crash_costs_no_accuracy_on_digits(tmp_path):
    data = VerticalRecords()
    data.setup()
    chosen = Setting(Protocol(), Delays(scale=0.05, floor=0.001), lr=2.0, l2=1e-3)

    def trained(folder, watch):
        net = build_model(data.shapes, data.classes, "auto", None, None, "auto", None, None, 0)
        return play(chosen, net, data.train, data.test, Plan(10.0, None, 1.0, silence=1.0, patience=20.0), tmp_path / folder, watch=watch)

    seen = {}

    def crash(process, clients):
        if "killed" not in seen and process.time > 3:
            clients.kill(4)
            seen["killed"] = process.server.updates
        if "killed" in seen and "back" not in seen and process.time > 4:
            seen["back"] = process.server.updates
            clients.restart(4)

    whole, broken = trained("whole", lambda *_: None), trained("broken", crash)
    assert broken.lost == 1
    assert seen["back"] > seen["killed"] + 50
    assert broken.longest_gap < 0.5
    noise = 0.02  # seven of 360 pictures, since real time is never twice the same
    assert broken.recorder.curve[-1]["accuracy"] > whole.recorder.curve[-1]["accuracy"] - noise
