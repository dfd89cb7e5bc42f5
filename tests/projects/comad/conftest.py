import pytest
from helpers.runs import copied, made_once

QUIET = ["--trainer.enable_model_summary", "false"]
FEW = ["--data.length", "40", "--data.val_length", "16", "--data.test_length", "4", "--model.patches", "300", "--model.restarts", "2"]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """The run folder of an inspector of few trays; tests copy it, see `run`."""
    from projects.comad.cli import main

    return made_once(tmp_path_factory, main, ["fit", *FEW, *QUIET])


@pytest.fixture
def run(fitted, run_folder):
    """The inspector of few trays as this test's latest run; its folder."""
    return copied(fitted, run_folder)
