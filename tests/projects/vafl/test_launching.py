import csv
import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch
from helpers.federation import Thread
from helpers.processes import start

from projects.vafl.cli import main
from shared.checkpoints import load_checkpoint

SHORT = ["--trainer.enable_progress_bar", "false", "--model.every", "1", "--model.delays.scale", "0.02", "--model.delays.floor", "0.001"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def artefact(run, verb, name):
    return next((run.path / "artefacts").rglob(f"{verb}/{name}"))


def write_parties(folder, records=90):
    """Write a folder for the server and one for each of two parties, each with its own file only."""
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(records) % 3
    features = torch.randn(records, 5, generator=chance) + 2 * torch.randn(3, 5, generator=chance)[labels]
    tables = {"labels.csv": ["id,label", *(f"s{row},{'abc'[int(label)]}" for row, label in enumerate(labels))]}
    for party, columns in enumerate((slice(0, 2), slice(2, 5))):
        own = features[:, columns].tolist()
        names = ",".join(f"x{column}" for column in range(len(own[0])))
        lines = [f"s{row}," + ",".join(f"{value:.4f}" for value in values) for row, values in enumerate(own)]
        tables[f"party-{party}.csv"] = [f"id,{names}", *lines[:: 1 - 2 * party]]  # in another order
    for place, name in zip(("server", "bank", "shop"), tables, strict=True):
        (folder / place).mkdir()
        (folder / place / name).write_text("\n".join(tables[name]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("transport", ["tcp", pytest.param("gloo", marks=pytest.mark.slow)])
def test_parties_that_hold_only_their_own_files_train_together(tmp_path, run_folder, capfd, monkeypatch, transport):
    write_parties(tmp_path)
    monkeypatch.setenv("VAFL_SECRET", "only we know")
    port = str(free_port())
    common = [*SHORT, "--transport", transport, "--port", port, "--patience", "60", "--data.source", "parties", "--data.parties", "2"]
    common += ["--data.batch_size", "6", "--data.class_count", "3", "--model.seconds", "null", "--trainer.max_steps", "200"]
    protected = ["--model.protection.std", "0.1", "--model.protection.clip", "5", "--model.protection.adjacency", "replace"]
    places = [tmp_path / "bank", tmp_path / "shop"]
    clients = [
        start(main, ["join", str(party), *common, *protected, "--data.root", str(place), "--run", place.name], environment={})
        for party, place in enumerate(places)
    ]
    served = main(["serve", *common, *protected, "--data.root", str(tmp_path / "server"), "--run", "server"])
    for client in clients:
        client.join(30)
        assert client.exitcode == 0
    assert served.result.summary["val/accuracy"] > 0.6
    only = [load_checkpoint(run_folder / "vafl" / name / "checkpoints" / "last.ckpt")["federation"]["only"] for name in ("server", "bank")]
    assert only == ["the server's head", "the net of client 0"]
    assert "waiting for 2 clients at 127.0.0.1" in capfd.readouterr().out
    for party, place in enumerate(places):
        with artefact(served.run.__class__(run_folder / "vafl" / place.name), "join", "ledger.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        own = load_checkpoint(run_folder / "vafl" / place.name / "checkpoints" / f"client-{party}.ckpt")["client"]
        assert int(row["releases_max"]) == int(own["releases"].max()) > 10
        assert float(row["mu"]) == pytest.approx(10 * int(row["releases_max"]) ** 0.5 / 0.1)


def test_virtual_time_leaves_the_files_of_fit(run_folder, capsys):
    short = ["--model.seconds", "3", "--model.every", "1", "--model.protocol.algorithm", "t_sync"]
    fitted, launched = main(["fit", *short, "--run", "one"]), main(["launch", *short, "--clock", "virtual", "--transport", "tcp", "--run", "two"])
    for name in ("trace.csv", "curve.csv"):
        assert artefact(fitted.run, "fit", name).read_bytes() == artefact(launched.run, "launch", name).read_bytes()
    ours, theirs = (load_checkpoint(cli.run.checkpoints / "last.ckpt")["state_dict"] for cli in (launched, fitted))
    for name, value in theirs.items():
        if name.startswith("model."):
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_launch_leaves_nobody_behind_and_goes_on(run_folder, number, code, capfd):
    folder = run_folder / "vafl" / "x" / "checkpoints"

    def stop():
        deadline = time.monotonic() + 60
        while not (folder / "client-7.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    Thread(stop)
    with pytest.raises(SystemExit) as stopped:
        main(["launch", *SHORT, "--model.seconds", "60", "--run", "x", "--transport", "tcp"])
    said = capfd.readouterr().err
    assert stopped.value.code == code
    assert multiprocessing.active_children() == []
    assert "go on with: lightning run projects/vafl/cli.py launch" in said
    assert "--resume --run x" in said
    assert "seeks it anew" not in said
    kept = load_checkpoint(folder / "server.ckpt")["server"]
    again = main(["launch", "--resume", "--run", "x", *SHORT, "--transport", "tcp", "--model.seconds", str(kept["time"] + 0.5)])
    with artefact(again.run, "launch", "curve.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    assert int(curve[-1]["updates"]) > kept["server"]["updates"] > 10
    assert [float(row["seconds"]) for row in curve[: len(kept["curve"])]] == [row["seconds"] for row in kept["curve"]]


def test_impossible_wishes_are_refused(capsys, monkeypatch):
    for options, said in (
        (["launch", "--model.protocol.algorithm", "centralised"], "centralised training has no clients"),
        (["launch", "--silence", "0"], "silence and patience must be positive seconds"),
        (["join", "9"], "there is no client 9: they are 0 to 7"),
        (["join", "1", "--port", "1", "--patience", "0.2"], "no server answers at 127.0.0.1:1 over gloo"),
        (["serve", "--port", str(free_port()), "--patience", "0.3"], "client 0, 1, 2, 3, 4, 5, 6, 7 has not joined within 0.3 s"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(options)
        assert stop.value.code == 1
        assert said in capsys.readouterr().err
