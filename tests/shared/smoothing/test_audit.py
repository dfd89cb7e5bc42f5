import numpy as np
import pytest
import torch

from shared.smoothing.audit import audit, ceiling, lattice
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.log import Row, table
from shared.smoothing.tables import read_table

SIGMA, DRAWS, ALPHA = 0.25, 100_000, 0.001


def honest(draws=DRAWS, told=DRAWS, alpha=ALPHA, count=300):
    generator = np.random.default_rng(0)
    hits = torch.from_numpy(generator.binomial(draws, generator.beta(4, 1, count))) * (told // draws)
    radii = SIGMA * normal_quantile(clopper_pearson_lower(hits, told, alpha))
    return [Row(i, 0, 0 if r > 0 else -1, max(r, 0.0), 1.0) for i, r in enumerate(radii.tolist())]


def findings(path, rows, rounding=False, branches=1, sigma=SIGMA, draws=DRAWS):
    path.write_text(table(rows, rounding))
    return audit(read_table(path), sigma, draws, ALPHA, branches)


def test_an_honest_table_has_no_findings(tmp_path):
    assert findings(tmp_path / "log", honest()) == []
    assert findings(tmp_path / "log", honest(1000, 1000), draws=1000) == []


def test_scaled_counts_are_found(tmp_path):
    for rounding in (False, True):
        found = findings(tmp_path / "log", honest(1000, DRAWS), rounding)[-1]
        assert found.severity == "unsound"
        assert "1000 draws whose counts were multiplied by 100" in found.message


def test_another_alpha_is_found(tmp_path):
    rows = [*honest(), Row(999, 0, 0, SIGMA * float(normal_quantile(0.01 ** (1 / DRAWS))), 1.0)]
    (found,) = findings(tmp_path / "log", rows)
    assert "0.9529, the most that 100000 draws" in found.message
    assert found.rows == (999,)


def test_radii_between_the_counts_are_found(tmp_path):
    top = lattice(SIGMA, DRAWS, ALPHA)[-2:].mean().item()
    (found,) = findings(tmp_path / "log", [*honest(), Row(999, 0, 0, top, 1.0)])
    assert "belong to no count" in found.message


def test_rounding_up_beyond_the_ceiling_is_found(tmp_path):
    rows = [Row(0, 0, 0, ceiling(SIGMA, DRAWS, ALPHA), 1.0)]
    assert findings(tmp_path / "log", rows) == []
    assert "rounded up" in findings(tmp_path / "log", rows, rounding=True)[0].message


def test_columns_that_contradict_each_other_are_found(tmp_path):
    header = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    cases = {
        "a running total": "0\t1\t1\t0.2\t1\t1.0\n1\t1\t1\t0.2\t2\t1.0\n2\t1\t0\t0.2\t2\t1.0\n3\t1\t1\t0.2\t3\t1.0\n",
        "contradicts": "0\t1\t2\t0.2\t1\t1.0\n",
        "more than once": "0\t1\t1\t0.2\t1\t1.0\n0\t1\t1\t0.2\t1\t1.0\n",
        "abstentions have a positive radius": "0\t1\t-1\t0.2\t0\t1.0\n",
        "these are abstentions": "0\t1\t1\t0.0\t1\t1.0\n",
        "negative or no numbers": "0\t1\t1\tnan\t1\t1.0\n",
        "is no row": "0\t1\t1\t0.2\t1\t1.0\n1\t1",
    }
    for message, text in cases.items():
        (tmp_path / "log").write_text(header + text)
        found = audit(read_table(tmp_path / "log"), SIGMA, DRAWS, ALPHA)
        assert any(message in finding.message for finding in found), (message, found)


def test_ceiling_of_two_branches(tmp_path):
    assert ceiling(0.18, 1000, 0.001, 2) == pytest.approx(0.688, abs=5e-4)
    rows = [Row(0, 0, 0, 0.97, 1.0), Row(1, 0, 0, 0.68, 1.0)]
    (found,) = findings(tmp_path / "log", rows, branches=2, sigma=0.18, draws=1000)
    assert found.rows == (0,)
