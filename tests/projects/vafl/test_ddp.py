"""The centralised baseline in two processes, and the refusal of those for parties that are simulated in one."""

import pytest
import torch
from helpers.processes import run_together
from helpers.workers import command_line

from projects.vafl.cli import main
from shared.checkpoints import load_checkpoint

CENTRALISED = [
    "fit",
    "--model.protocol.algorithm",
    "centralised",
    "--model.lr",
    "0.5",
    "--trainer.max_epochs",
    "1",
    "--trainer.enable_model_summary",
    "false",
]


def test_two_processes_learn_what_one_learns(run_folder):
    one = main([*CENTRALISED, "--run", "one"]).trainer
    run_together(command_line, [*CENTRALISED, "--run", "two"], "vafl")
    first, second = (load_checkpoint(run_folder / "vafl" / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-5, rtol=1e-4)
    assert float(one.callback_metrics["val/accuracy"]) > 0.7


def test_parties_are_not_dealt_out_to_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["fit", "--model.seconds", "1", "--run", "x", "--trainer.strategy", "ddp"])
    assert "process" in capsys.readouterr().err
