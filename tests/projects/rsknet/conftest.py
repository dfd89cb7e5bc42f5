import shutil

import pytest

QUIET = ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
NET = ["--model.options={layers: [1, 1, 1], widths: [4, 6, 8], embedding: 12}"]
SPEAKERS = ["--data.speakers=8", "--data.utterances=4", "--data.held_speakers=6", "--data.test_speakers=5", "--data.test_utterances=3"]


@pytest.fixture(scope="session")
def small():
    """Options of a short training of a small network on few speakers."""
    return [*QUIET, *NET, *SPEAKERS, "--data.batch_size=8", "--trainer.max_epochs=2"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small):
    """A folder of runs with a short training; tests copy it, see `run`."""
    from projects.rsknet.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        main(["fit", *small])
    return folder


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run; its folder."""
    shutil.copytree(trained / "rsknet", run_folder / "rsknet")
    return run_folder / "rsknet" / (run_folder / "rsknet" / "latest").read_text().strip()
