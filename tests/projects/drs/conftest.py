import shutil

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    from projects.drs.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        main(["fit", "--run", "short", "--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=3"])
    return folder / "drs" / "short"


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    target = run_folder / "drs" / "short"
    shutil.copytree(trained, target)
    (run_folder / "drs" / "latest").write_text("short\n")
    return target
