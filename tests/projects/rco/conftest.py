import shutil

import pytest
from helpers.distilling import SHORT, record, world


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Route of a teacher of the small world, six epochs, each stored."""
    return record(tmp_path_factory.mktemp("teacher"), world(), "mlp_32")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder of runs: a teacher, and a student that followed its route; tests copy it, see `runs`."""
    from projects.rco.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr("shared.report.build_report", lambda folder: None)
        main(["teach", "--run=teacher", *SHORT])
        main(["fit", "--run=student", "--model.route=latest", *SHORT])
    return folder


@pytest.fixture
def runs(trained, run_folder):
    """This test's own copy of those runs; the folder of the project's runs."""
    shutil.copytree(trained / "rco", run_folder / "rco")
    return run_folder / "rco"
