"""Two processes train and test as one does."""

import csv
import json

import pytest
import torch
from helpers.processes import run_together
from helpers.workers import command_line

from projects.s3rp.cli import main
from shared.checkpoints import load_checkpoint


def table(folder, verb, name):
    return json.loads((folder / "artefacts" / verb / f"{name}.json").read_text())


def agree(rows, others, tolerance):
    for row, other in zip(rows, others, strict=True):
        assert row == {name: pytest.approx(value, abs=tolerance) if isinstance(value, float) else value for name, value in other.items()}


def scores(folder):
    with (folder / "fit" / "metrics.csv").open() as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("net", ["s3rp_d", "s3rp_r"])
def test_two_processes_test_as_one(run_folder, small, net):
    """Five sequences, of which one process gets three: each is counted once, and draws the same members wherever it lies."""
    main(["fit", *small, "--run=one", "--members=20", "--trainer.max_epochs=1", f"--model.net={net}", "--model.forecast=0"])
    run_together(command_line, ["test", "--run=one", "--members=20"], "s3rp")
    run = run_folder / "s3rp" / "one"
    agree(table(run, "test", "methods"), table(run, "fit", "methods"), 1e-3)
    agree(table(run, "test", "ensembles"), table(run, "fit", "ensembles"), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["--model.find_source=true", "--model.learn_diffusivity=true"]], ids=["plain", "with sources and diffusivity"]
)
def test_two_processes_learn_what_one_learns(run_folder, small, options):
    """Each of them sees half of each batch, and the gradient is the mean of both; hidden pixels differ from process to process: there are none."""
    common = ["fit", *small, "--model.hide=0", "--data.world.missing=0", "--data.val=4", "--members=0", *options]
    main([*common, "--run=one"])
    run_together(command_line, [*common, "--run=two"], "s3rp")
    one, two = (load_checkpoint(run_folder / "s3rp" / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    one.pop("net.decoder.4.bias")  # the projection takes a constant away: its gradient is rounding alone
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-4, rtol=1e-2)
    assert scores(run_folder / "s3rp" / "two") == pytest.approx(scores(run_folder / "s3rp" / "one"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--model.divergence=mmd"], ["--model.divergence=critic"]], ids=["mmd", "critic"])
def test_two_processes_train_a_stochastic_network(run_folder, small, options):
    run_together(command_line, ["fit", *small, "--run=two", "--model.net=s3rp_r", "--model.forecast=0", "--members=0", *options], "s3rp")
    last = load_checkpoint(run_folder / "s3rp" / "two" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4
    assert all(bool(value.isfinite().all()) for value in last["state_dict"].values())
