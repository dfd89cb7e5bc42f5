import shutil

import pytest

QUIET = ["--trainer.enable_model_summary", "false"]
FEW = ["--data.length", "40", "--data.val_length", "16", "--data.test_length", "4", "--model.patches", "300", "--model.restarts", "2"]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A folder of runs with an inspector of few trays; tests copy it, see `run`."""
    from projects.comad.cli import main

    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        main(["fit", *FEW, *QUIET])
    return folder


@pytest.fixture
def run(fitted, run_folder):
    """The inspector of few trays as this test's latest run; its folder."""
    shutil.copytree(fitted / "comad", run_folder / "comad")
    return run_folder / "comad" / (run_folder / "comad" / "latest").read_text().strip()
