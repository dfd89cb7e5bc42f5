import csv
import socket

import lightning as L
import matplotlib.pyplot as plt
import pytest
import torch
from helpers.wandb_file import read_run, read_summary

from shared.loggers import ContinuedCSVLogger, finish_loggers, log_figure, log_image, log_table, make_loggers, wandb_mode
from shared.runs import Run


def test_the_mode_never_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("online") == "disabled"
    with pytest.raises(ValueError, match="auto, online, offline, disabled"):
        wandb_mode("sometimes")


def test_an_offline_run_holds_metrics_and_pictures_and_needs_no_network(run_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    connect = socket.socket.connect
    outside = []

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            outside.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    run = Run(run_folder / "paper" / "one")
    trainer = L.Trainer(default_root_dir=run.path, logger=make_loggers(run, "fit", "auto"), enable_checkpointing=False, enable_progress_bar=False)
    for logger in trainer.loggers:
        logger.log_metrics({"train/loss": 0.25}, step=3)
        logger.save()
    picture = log_image(trainer, "samples", torch.rand(3, 8, 8), step=3)
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    curve = log_figure(trainer, "curve", figure)
    table = log_table(trainer, "table", [{"name": "a", "value": 1.5}, {"name": 2, "value": None}])  # words and numbers in a column
    finish_loggers(trainer, {"test/s_measure": 0.75, "verdict": "clean"})
    [file] = run.path.glob("wandb/offline-run-*/run-*.wandb")
    history, info = read_run(file)
    assert ("train/loss", "0.25") in history
    assert {"test/s_measure": "0.75", "verdict": '"clean"'}.items() <= read_summary(file).items()
    assert {"samples", "curve", "table"} <= {name.split("/")[0] for name, _ in history}
    assert (info.run_id, info.project, info.job_type) == ("one", "touchstone-paper", "fit")
    assert outside == []
    assert picture == run.path / "artefacts" / "fit" / "samples-000003.png"
    assert curve.read_bytes()[:4] == b"\x89PNG"
    assert table.read_text().splitlines() == ["name,value", "a,1.5", "2,"]
    assert list((run.path / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))


def test_two_verbs_are_two_wandb_runs(run_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = Run(run_folder / "paper" / "one")
    for verb in ("fit", "test"):
        trainer = L.Trainer(default_root_dir=run.path, logger=make_loggers(run, verb, "auto"), enable_checkpointing=False, enable_progress_bar=False)
        trainer.loggers[1].log_metrics({"a": 1.0})
        finish_loggers(trainer)
    assert len(list(run.path.glob("wandb/offline-run-*-one"))) >= 1
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 2


def test_the_csv_keeps_rows_only_on_resuming(tmp_path):
    def log(steps, keep=None):
        logger = ContinuedCSVLogger(tmp_path / "fit", flush_every=1)
        if keep is not None:
            logger.keep_until(keep)
        for step in steps:
            logger.log_metrics({"train/loss": float(step)}, step=step)
        logger.finalize("success")
        return [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader((tmp_path / "fit" / "metrics.csv").open())]

    assert log(range(5)) == [(step, step) for step in range(5)]
    assert log(range(3, 6), keep=3) == [(step, step) for step in range(6)]
    assert log([0]) == [(0, 0)]


def test_further_processes_make_no_run_folder_before_the_first(run_folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("RANK", "1")
    make_loggers(Run(run_folder / "paper" / "one"), "fit", "auto")
    assert not (run_folder / "paper" / "one").exists()
