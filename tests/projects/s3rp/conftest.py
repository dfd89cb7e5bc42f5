import shutil

import pytest

SMALL = [
    *("--data.world.size=16", "--data.world.frames=4", "--data.world.sigma=0.01", "--data.world.missing=0.2", "--data.world.diffusivity=0.01"),
    *("--data.train=8", "--data.val=3", "--data.test=5", "--data.batch_size=4", "--model.channels=4", "--model.hide=0.2"),
    *("--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--trainer.enable_model_summary=false"),
]


@pytest.fixture(scope="session")
def small():
    """Options of a short training of a small network on few sequences."""
    return list(SMALL)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small):
    """A folder of runs with a short training; tests copy it, see `run`."""
    from projects.s3rp.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr("shared.report.build_report", lambda folder: None)
        main(["fit", *small, "--members=20"])
    return folder


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run; its folder."""
    shutil.copytree(trained / "s3rp", run_folder / "s3rp")
    return run_folder / "s3rp" / (run_folder / "s3rp" / "latest").read_text().strip()
