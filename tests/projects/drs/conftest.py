import pytest
from helpers.runs import copied, made_once


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    from projects.drs.cli import main

    return made_once(tmp_path_factory, main, ["fit", "--run", "short", "--trainer.max_epochs=6", "--trainer.check_val_every_n_epoch=3"])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)
