import dataclasses
import random
import signal

import pytest
from helpers.certifying import EARLY, FIXED, certify, certify_as_process, certify_until_killed, items, smoothed
from helpers.processes import start

from shared.smoothing import CertificationLog
from shared.smoothing.log import read_rows


class KilledError(Exception):
    pass


class Fuse:
    """Raises after so many calls."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self):
        self.left -= 1
        if self.left < 0:
            raise KilledError


class Calls:
    count = 0

    def __call__(self):
        self.count += 1


def merged(folder, budget):
    CertificationLog(folder, smoothed(budget).settings).merge()
    return [dataclasses.replace(row, seconds=0) for row in read_rows(folder / "certify.jsonl")[1]]


@pytest.mark.parametrize("budget", [EARLY, FIXED], ids=["early", "fixed"])
@pytest.mark.parametrize("seed", range(3))
def test_runs_killed_inside_an_image_go_on_to_the_same_log(tmp_path, budget, seed):
    calls = Calls()
    certify(tmp_path / "whole", budget, batch_size=16, before=calls)
    generator, killed, spent = random.Random(seed), tmp_path / "killed", Calls()
    for size in (16, 48):
        with pytest.raises(KilledError):
            certify(killed, budget, batch_size=size, before=Fuse(generator.randrange(60, calls.count // 4)))
    log = CertificationLog(killed, smoothed(budget).settings)
    assert log.partials or log.done
    for rank in range(2):
        certify(killed, budget, rank, 2, batch_size=16, before=spent)
    assert merged(killed, budget) == merged(tmp_path / "whole", budget)
    assert spent.count < calls.count - 30
    assert not list(killed.glob("partial-*"))


def test_an_image_goes_on_from_its_counts(tmp_path):
    """With the whole budget in one look, what was drawn before the kill is not drawn again."""
    whole, rest = Calls(), Calls()
    certify(tmp_path / "whole", FIXED, batch_size=16, before=whole)
    with pytest.raises(KilledError):
        certify(tmp_path / "killed", FIXED, batch_size=16, before=Fuse(150))  # of 2 * 97 forward passes of the first image
    (partial,) = CertificationLog(tmp_path / "killed", smoothed(FIXED).settings).partials.values()
    assert partial.done == 8 * 16 * (150 // 16)
    assert sum(partial.estimation[1].values()) == partial.done - 50
    certify(tmp_path / "killed", FIXED, batch_size=16, before=rest)
    assert whole.count - rest.count == 2 * 8 * (150 // 16)


def test_what_others_left_is_kept_until_its_image_is_settled(tmp_path):
    with pytest.raises(KilledError):
        certify(tmp_path, FIXED, batch_size=16, before=Fuse(150))
    log = CertificationLog(tmp_path, smoothed(FIXED).settings, rank=1)
    log.keep(list, at_once=True)
    (tmp_path / "partial-0000.json").unlink()
    assert CertificationLog(tmp_path, smoothed(FIXED).settings).partials == log.partials
    log.merge()
    assert (tmp_path / "partial-0001.json").exists(), "a table of an unfinished run leaves the votes alone"


def test_votes_are_written_when_it_is_time(tmp_path):
    certify(tmp_path / "seldom", FIXED, partial_seconds=1e6)
    assert not list((tmp_path / "seldom").glob("partial-*")), "a run that ends leaves none"
    log = CertificationLog(tmp_path / "log", {}, partial_seconds=1e6)
    log.keep(lambda: pytest.fail("it is not time"))


def test_two_processes_make_the_log_of_one(tmp_path):
    certify(tmp_path / "one", EARLY)
    processes = [start(certify_as_process, tmp_path / "two", EARLY, rank, 2, 7) for rank in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert [len(read_rows(tmp_path / "two" / f"part-000{rank}.jsonl")[1]) for rank in range(2)] == [4, 3]
    assert merged(tmp_path / "two", EARLY) == merged(tmp_path / "one", EARLY)


def test_a_process_killed_without_warning_loses_nothing(tmp_path):
    certify(tmp_path / "whole", FIXED)
    process = start(certify_until_killed, tmp_path / "killed", FIXED, 300)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    log = CertificationLog(tmp_path / "killed", smoothed(FIXED).settings)
    assert len(log.done) < len(items())
    assert log.partials
    certify(tmp_path / "killed", FIXED, batch_size=100)
    assert merged(tmp_path / "killed", FIXED) == merged(tmp_path / "whole", FIXED)
