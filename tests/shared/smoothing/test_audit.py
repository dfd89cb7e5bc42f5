import numpy as np
import pytest
import torch

from shared.smoothing.audit import audit
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.certificates import Smoothing
from shared.smoothing.lattices import ceiling, lattice
from shared.smoothing.log import Row, table
from shared.smoothing.tables import read_table

SIGMA, DRAWS, ALPHA = 0.25, 100_000, 0.001


def honest(draws=DRAWS, told=DRAWS, alpha=ALPHA, count=300):
    generator = np.random.default_rng(0)
    hits = torch.from_numpy(generator.binomial(draws, generator.beta(4, 1, count))) * (told // draws)
    radii = SIGMA * normal_quantile(clopper_pearson_lower(hits, told, alpha))
    return [Row(i, 0, 0 if r > 0 else -1, max(r, 0.0), 1.0) for i, r in enumerate(radii.tolist())]


def findings(path, rows, rounding=False, branches=1, sigma=SIGMA, draws=DRAWS, rule=None):
    path.write_text(table(rows, rounding))
    return audit(read_table(path), sigma, draws, ALPHA, branches, rule)


def dual(radius, draws, count, easy=6):
    """A table of two branches, from binomial counts of known probabilities, many of them near 1 as in published logs."""
    generator = np.random.default_rng(1)
    p = generator.beta(easy, 1, (count, 2)) ** generator.choice([1, 1e-2, 1e-4], (count, 1))
    hits = torch.from_numpy(generator.binomial(draws, p))
    return [Row(5 * i, 0, 0 if r > 0 else -1, max(float(r), 0.0), 1.0) for i, r in enumerate(map(radius, hits))]


def test_an_honest_table_has_no_findings(tmp_path):
    assert findings(tmp_path / "log", honest()) == []
    assert findings(tmp_path / "log", honest(1000, 1000), draws=1000) == []


def test_scaled_counts_are_found(tmp_path):
    for rounding in (False, True):
        found = findings(tmp_path / "log", honest(1000, DRAWS), rounding)[0]
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
    (found,) = findings(tmp_path / "log", rows, rounding=True)
    assert "rounded up" in found.message
    assert found.severity == "note"  # as the original code writes radii


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
    rows = [Row(0, 0, 0, 0.97, 1.0), Row(1, 0, 0, 0.6457, 1.0)]
    (found, note) = findings(tmp_path / "log", rows, branches=2, sigma=0.18, draws=1000)
    assert found.rows == (0,)
    assert note.message == "1 radii lie above 0.6183, the most of the certificate 'main': they cannot be its"
    assert findings(tmp_path / "log", rows[1:], branches=2, sigma=0.18, draws=1000, rule="main")[0].severity == "unsound"


@pytest.mark.parametrize("draws", [1000, 100_000])
@pytest.mark.parametrize("rule", ["main", "pooled", "joint"])
def test_honest_tables_of_two_branches_pass(tmp_path, rule, draws):
    smoothing = Smoothing((0.18, 0.18), rule, ALPHA)

    def radius(hits):
        return smoothing.certify(torch.stack([hits, draws - hits], 1), draws, 0).radius

    rows = dual(radius, draws, 60 if rule == "joint" else 400)
    for told in (rule, None):
        for rounding in (False, True):
            found = findings(tmp_path / "log", rows, rounding, 2, 0.18, draws, told)
            assert all(finding.severity == "note" for finding in found), found


def own_radii(hits, draws, told, alpha=ALPHA):
    return 0.18 * normal_quantile(clopper_pearson_lower(hits * (told // draws), told, alpha)).clamp_min(0)


def test_the_published_rule_with_scaled_counts_is_found(tmp_path):
    rows = dual(lambda hits: torch.linalg.vector_norm(own_radii(hits, 1000, DRAWS)), 1000, 2000)
    radii = sorted({float(f"{row.radius:.3}") for row in rows}, reverse=True)
    assert radii[:5] == [0.97, 0.873, 0.852, 0.84, 0.831]  # those of the published CIFAR-10 logs
    for rounding in (False, True):
        found = [finding for finding in findings(tmp_path / "log", rows, rounding, 2, 0.18) if finding.severity == "unsound"]
        text = str([finding.message for finding in found])
        assert "1000 draws of each branch whose counts were multiplied by 100" in text
        assert "sqrt(R_l^2 + R_r^2)" in text
        assert "alpha, not alpha / 2" in text
    assert "above 0.9642" in findings(tmp_path / "log", rows, False, 2, 0.18, rule="main")[0].message


def test_the_root_of_squares_without_scaling_is_found_where_the_certificate_is_named(tmp_path):
    for alpha, told in ((ALPHA, 1000), (ALPHA, DRAWS), (ALPHA / 2, 1000)):
        rows = dual(lambda hits, a=alpha, n=told: torch.linalg.vector_norm(own_radii(hits, n, n, a)), told, 2000)
        assert findings(tmp_path / "log", rows, False, 2, 0.18, told, "main")[0].severity == "unsound"


def test_an_easy_data_set_is_not_suspected(tmp_path):
    """All images at the ceiling, which every coarser lattice shares."""
    for branches in (1, 2):
        rows = [Row(i, 0, 0, ceiling(0.25, DRAWS, ALPHA, branches), 1.0) for i in range(200)]
        assert [f for f in findings(tmp_path / "log", rows, branches=branches) if f.severity != "note"] == []


def test_a_running_total_beside_times_is_found(tmp_path):
    lines = [f"{20 * i}\t3\t{3 if i % 3 else 1}\t0.25\t{sum(1 for j in range(i + 1) if j % 3)}\t0:02:01.{i:06d}" for i in range(30)]
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "\n".join(lines))
    found = audit(read_table(tmp_path / "log"), SIGMA, DRAWS, ALPHA)
    assert "running total" in found[0].message


def test_too_few_draws_certify_nothing(tmp_path):
    for branches, rule in ((1, None), (2, None), (2, "main")):
        found = findings(tmp_path / "log", [Row(0, 0, 0, 0.1, 1.0)], branches=branches, draws=4, rule=rule)
        assert "1 radii lie above 0, the most that 4 draws" in found[0].message
        assert findings(tmp_path / "log", [Row(0, 0, -1, 0.0, 1.0)], branches=branches, draws=4, rule=rule) == []
    with pytest.raises(ValueError, match="alpha lies in"):
        audit(read_table(tmp_path / "log"), SIGMA, DRAWS, 1.0)
