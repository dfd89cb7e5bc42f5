import dataclasses
import math
import random

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from shared.smoothing.budget import Budget
from shared.smoothing.certificates import Smoothing, anisotropic_radii
from shared.smoothing.engine import SmoothedClassifier, certify_dataset
from shared.smoothing.log import CertificationLog, prediction_table, read_rows
from shared.smoothing.noise import has_stateless
from shared.smoothing.tables import read_table
from shared.smoothing.votes import Branch, LogitMean, VoteCounter, Work, evaluating

SMALL = Budget(selection=50, draws=300)
EARLY = Budget(selection=50, draws=800, radii=(0.2, 0.4, 0.6))


class HalfSpace(nn.Module):
    """Class 0 where the mean of all elements, times the root of their number, is at most the threshold: known radii in closed form."""

    def __init__(self, threshold=0.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        margin = self.threshold - x.flatten(1).sum(1) / math.sqrt(x[0].numel())
        return torch.stack([margin, -margin], dim=1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 2, 3))


def halves(left, right):
    return [Branch(left, lambda x: x[..., ::2]), Branch(right, lambda x: x[..., 1::2])]


def two_networks():
    return halves(network(1), network(2))


@pytest.fixture
def images():
    return torch.rand(9, 2, 6, 8, generator=torch.Generator().manual_seed(3))


def smoothed(branches=None, budget=SMALL, rule="joint", sigma=0.5, **settings):
    branches = two_networks() if branches is None else branches
    count = len(branches) if isinstance(branches, list) else 1
    return SmoothedClassifier(branches, settings.pop("classes", 3), Smoothing((sigma,) * count, rule, 0.01), budget, key=2**63 + 5, **settings)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a.index, a.certificate, a.draws) == (b.index, b.certificate, b.draws)
        assert torch.equal(a.selection, b.selection)
        assert torch.equal(a.estimation, b.estimation)


@pytest.mark.parametrize("budget", [SMALL, EARLY])
def test_counts_do_not_depend_on_batches_packing_or_order(images, budget):
    expected = smoothed(budget=budget, batch_size=64).certify(images)
    assert all((result.selection.sum(1) == 50).all() for result in expected)
    assert all((result.estimation.sum(1) == result.draws).all() for result in expected)
    for size in (7, 1000):
        same(smoothed(budget=budget, batch_size=size).certify(images), expected)
    alone = smoothed(budget=budget, batch_size=64)
    same([alone.certify(images[i : i + 1], [i])[0] for i in range(9)], expected)
    order = random.Random(0).sample(range(9), 9)
    same(smoothed(budget=budget).certify(images[order], order), [expected[i] for i in order])


def test_counts_of_single_copies(images):
    same(smoothed(batch_size=1).certify(images[:3]), smoothed().certify(images[:3]))


def test_images_can_be_pushed(images):
    stream, found = smoothed(batch_size=128).stream(), []
    assert stream.is_empty
    assert stream.advance() == []
    for index, image in enumerate(images):
        stream.add(index, image)
        while stream.is_full:
            found += stream.advance()
    with pytest.raises(ValueError, match="image 8 cannot be added"):
        stream.add(8, images[8])
    while not stream.is_empty:
        found += stream.advance()
    assert not found[0].estimation.is_inference()
    same(sorted(found, key=lambda result: result.index), smoothed().certify(images))


def test_counts_are_those_of_a_plain_loop(images):
    (found,) = smoothed(HalfSpace(), classes=2).certify(images[:1], [4])
    counter = VoteCounter([Branch(HalfSpace())], [0.5], 2, 2**63 + 5)
    counter.load(0, images[0])
    for draw in range(300):
        counter.count([Work(0, 4, 1, draw, draw + 1)])
    assert torch.equal(counter.counts[0, 1], found.estimation)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_killed_run_goes_on_to_the_same_log(tmp_path, images, world_size):
    items = [(10 * i, image, i % 3) for i, image in enumerate(images)]
    settings = smoothed().settings

    def run(folder, size, upto, world):
        for rank in range(world):
            with CertificationLog(folder, settings, rank) as log:
                certify_dataset(smoothed(batch_size=size), items[:upto], log, rank, world)

    run(tmp_path / "whole", 64, 9, 1)
    run(tmp_path / "killed", 7, 4, 1)
    part = tmp_path / "killed" / "part-0000.jsonl"
    part.write_bytes(part.read_bytes()[:-9])
    run(tmp_path / "killed", 1000, 9, world_size)
    tables = []
    for name in ("whole", "killed"):
        CertificationLog(tmp_path / name, settings).merge()
        tables.append([dataclasses.replace(row, seconds=0) for row in read_rows(tmp_path / name / "certify.jsonl")[1]])
    assert tables[0] == tables[1]
    assert [row.index for row in tables[0]] == list(range(0, 90, 10))


@pytest.mark.parametrize(
    ("rule", "budget"),
    [("main", Budget(20, 200)), ("pooled", Budget(20, 200)), ("main", Budget(20, 512, tolerance=0.3)), ("main", Budget(20, 512, radii=(0.3,)))],
)
def test_half_spaces_are_rarely_over_certified(rule, budget):
    """Two branches see the same half-space: the fused answer changes at sqrt(2) sigma a, the single one at sigma a."""
    a, runs, alpha = 0.6, 2000, 0.05
    branches = halves(HalfSpace(0.5 * a), HalfSpace(0.5 * a)) if rule == "pooled" else [Branch(HalfSpace(0.5 * a))]
    classifier = SmoothedClassifier(branches, 2, Smoothing((0.5,) * len(branches), rule, alpha), budget, key=9, batch_size=4096)
    results = classifier.certify(torch.zeros(runs, 1, 2, 4))
    truth = math.sqrt(len(branches)) * 0.5 * a
    exceeded = sum(result.certificate.radius > truth for result in results) / runs
    assert exceeded <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert sum(result.certificate.radius > 0.5 * truth for result in results) > 0.5 * runs, "the radii must say something"
    hits = sum(int(result.estimation[0, 0]) for result in results) / sum(result.draws for result in results)
    if not budget.is_anytime:
        assert hits == pytest.approx(stats.norm.cdf(a), abs=4 * math.sqrt(0.25 / (runs * budget.draws)))


def test_early_stops_decide_as_all_draws_do_and_save_most():
    thresholds = torch.linspace(-0.2, 1.5, 18).tolist()
    radii = (0.125, 0.25, 0.375, 0.5)
    saved, decided = 0, 0
    for index, threshold in enumerate(thresholds):
        classifiers = [
            smoothed(HalfSpace(threshold), budget, classes=2, batch_size=2048) for budget in (Budget(50, 20_000), Budget(50, 20_000, radii))
        ]
        full, early = (classifier.certify(torch.zeros(1, 1, 2, 4), [index])[0] for classifier in classifiers)
        saved += full.draws - early.draws
        if early.draws < full.draws:
            decided += 1
            assert [early.certificate.radius >= r for r in radii] == [full.certificate.radius >= r for r in radii]
    assert decided >= 16
    assert saved > 0.66 * 20_000 * len(thresholds), "at least three times fewer draws"


def test_predictions_are_right_or_abstain(images):
    for branches in (HalfSpace(1.0), halves(HalfSpace(0.5), HalfSpace(0.6))):
        found = smoothed(branches, classes=2).predict(torch.zeros(4, 2, 6, 8), draws=500)
        assert found.classes.tolist() == [0] * 4
        assert found.counts.sum(1).tolist() == [500] * 4
        expected = stats.binomtest(int(found.counts[0, 0]), 500).pvalue
        assert found.p_values[0].item() == pytest.approx(expected, rel=1e-9)
    undecided = smoothed(HalfSpace(0.0), classes=2).predict(torch.zeros(40, 1, 2, 4), alpha=0.05, draws=200, key=3)
    assert (undecided.classes == -1).sum() >= 33
    assert torch.equal(undecided.classes == -1, undecided.p_values > 0.05)
    first, second = (smoothed().predict(images, key=3, draws=100) for _ in range(2))
    assert torch.equal(first.counts, second.counts)
    assert len(smoothed().predict(images[:0]).classes) == 0


def test_predictions_are_written_in_cohens_columns(tmp_path, images):
    found = smoothed(HalfSpace(9.0), classes=2).predict(images[:3], draws=50)
    text = prediction_table(found.rows(torch.tensor([0, 1, 0]), [5, 10, 15]))
    assert text.startswith("idx\tlabel\tpredict\tcorrect\ttime\n5\t0\t0\t1\t0:00:0")
    (tmp_path / "log").write_text(text)
    table = read_table(tmp_path / "log")
    assert (table.index.tolist(), table.is_correct.tolist()) == ([5, 10, 15], [True, False, True])


def test_anisotropic_noise_certifies_the_ellipsoid():
    """w x <= c under noise sigma theta: p = Phi(c / (sigma |w theta|)), and the ellipsoid touches the boundary at R = c / |w theta|."""
    theta = torch.tensor([0.5, 1.0, 2.0, 0.25]).view(1, 2, 2)
    weights, c = torch.tensor([1.0, -2.0, 0.5, 3.0]), 0.8

    def classify(x):
        margin = c - x.flatten(1) @ weights
        return torch.stack([margin, -margin], dim=1)

    truth = c / float((weights * theta.flatten()).norm())
    classifier = SmoothedClassifier([Branch(classify, theta=theta)], 2, Smoothing((0.5,), "main", 0.01), Budget(50, 20_000))
    (found,) = classifier.certify(torch.zeros(1, 1, 2, 2))
    assert int(found.estimation[0, 0]) / 20_000 == pytest.approx(stats.norm.cdf(truth / 0.5), abs=0.01)
    assert 0.93 * truth < found.certificate.radius < truth
    assert found.certificate.norm == "ellipsoid"
    assert anisotropic_radii(found.certificate.radius, theta, fitted_to_input=False).l2 == pytest.approx(0.25 * found.certificate.radius)
    assert classifier.settings["theta"] != SmoothedClassifier([Branch(classify, theta=2 * theta)], 2, Smoothing((0.5,)), SMALL).settings["theta"]


def test_randomised_certificates_log_their_coins(images):
    def certify(is_randomised, size):
        smoothing = Smoothing((0.5, 0.5), "pooled", 0.01, randomised=is_randomised)
        return SmoothedClassifier(two_networks(), 3, smoothing, SMALL, key=7, batch_size=size).certify(images)

    plain, found = certify(False, 64), certify(True, 64)
    same(certify(True, 7), found)
    assert all(a.certificate.radius >= b.certificate.radius - 1e-9 for a, b in zip(found, plain, strict=True))
    assert len({coin for result in found for coin in result.row(0).details["coins"]}) == 2 * len(images)
    assert "coins" not in plain[0].row(0).details


def test_logits_that_are_not_finite_never_win(images):
    def broken(x):
        logits = HalfSpace(10.0)(x)
        logits[x.flatten(1)[:, 0] > 0] = math.nan
        return logits

    (found,) = smoothed(broken, classes=2).certify(torch.zeros(1, 1, 2, 4))
    invalid = int(found.estimation[0, 2])
    assert 110 < invalid < 190
    assert int(found.estimation[0, 0]) == 300 - invalid
    assert found.row(0).details["estimation"] == [{"0": 300 - invalid, "invalid": invalid}]
    (nothing,) = smoothed(lambda x: torch.full((len(x), 2), math.nan), classes=2).certify(torch.zeros(1, 1, 2, 4))
    assert nothing.certificate.is_abstention


def test_networks_are_evaluated_and_left_as_they_were(images):
    net = network()
    net = nn.Sequential(net[0], net[1].train(), net[2].eval(), nn.Dropout(0.5).train(), nn.Flatten(), nn.Linear(4 * 4 * 6, 3))
    modes = [module.training for module in net.modules()]
    statistics = net[1].running_mean.clone()
    first, second = smoothed(net).certify(images[:2]), smoothed(net, batch_size=31).certify(images[:2])
    same(first, second)
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(net[1].running_mean, statistics)
    assert torch.is_grad_enabled()
    ensemble = LogitMean([network(1), network(2)]).eval()
    x = torch.rand(3, 2, 6, 4)
    torch.testing.assert_close(ensemble(x), (network(1).eval()(x) + network(2).eval()(x)) / 2)


def test_nothing_is_read_from_the_device_between_looks(images):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **kwargs or {})

    has_stateless("cpu")
    counter = VoteCounter(two_networks(), (0.5, 0.5), 3, 1, slots=2, batch_size=16)
    for slot in range(2):
        counter.load(slot, images[slot])
    with Reads() as reads, evaluating(counter.branches):
        counter.count([Work(0, 5, 0, 0, 100), Work(1, 6, 1, 50, 90)])
    assert reads.count == 0
    assert counter.counts.sum((2, 3)).tolist() == [[200, 0], [0, 80]]


def test_other_precisions_and_layouts(images):
    seen = []

    def classify(x):
        seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return HalfSpace(1.0)(x.float())

    smoothed(classify, classes=2, dtype=torch.bfloat16, channels_last=True).certify(images[:1])
    assert set(seen) == {(torch.bfloat16, True)}


def test_noise_on_the_grid_and_uniform_noise():
    levels = torch.randint(0, 256, (1, 1, 4, 4)) / 255
    seen = []

    def classify(x):
        seen.append(bool(torch.equal((x * 255).round() / 255, x)))
        return HalfSpace(3.0)(x)

    (found,) = smoothed(classify, classes=2, law="grid", sigma=0.1).certify(levels)
    assert all(seen)
    assert found.certificate.radius > 0
    with pytest.raises(ValueError, match="8 bits"):
        smoothed(classify, classes=2, law="grid").certify(levels + 0.001)
    (found,) = smoothed(HalfSpace(9.0), classes=2, law="uniform", rule="l1").certify(levels)
    assert found.certificate.norm == "l1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda images: smoothed([Branch(network()), Branch(network())], rule="main").certify(images), "or those of another branch"),
        (lambda images: smoothed([Branch(network(), lambda x: x[..., ::2] * 2)]).certify(images), "as they are"),
        (lambda images: smoothed([Branch(network(), lambda x: x.repeat(1, 1, 1, 2))]).certify(images), "takes elements twice"),
        (lambda images: smoothed(HalfSpace(), classes=3).certify(images), r"returned \(\d+, 2\)"),
        (lambda images: smoothed().certify(images, [1] * 9), "different indices"),
        (lambda images: smoothed(law="uniform"), "uniform noise certifies l1"),
        (lambda images: SmoothedClassifier(two_networks(), 3, Smoothing((1.0,)), SMALL), "as many sigmas"),
        (lambda images: smoothed(rule="pooled", budget=EARLY), "fixed number of draws"),
        (lambda images: smoothed([Branch(network())] * 3, rule="shared").predict(images), "one or two branches"),
        (lambda images: Budget(draws=0), "needs draws"),
        (lambda images: smoothed([Branch(network(), theta=torch.ones(3))]).certify(images), "part's shape"),
        (lambda images: smoothed([Branch(network(), theta=torch.ones(1))], law="grid"), "for Gaussian noise"),
        (lambda images: Budget(radii=(0.0,)), "must be positive"),
    ],
)
def test_mistakes_are_named(images, make, message):
    with pytest.raises(ValueError, match=message):
        make(images)


def test_branches_that_share_their_noise_may_overlap(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    (found,) = smoothed([Branch(net), Branch(net)], rule="shared").certify(images[:1])
    assert torch.equal(found.estimation[0], found.estimation[1])


def test_classifiers_that_look_at_the_rest_of_the_batch_are_refused(images):
    training = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(96, 3)).train()
    statistics = training[0].running_mean.clone()
    for classifier in (lambda x: training(x), nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(96, 3))):
        with pytest.raises(ValueError, match="depend on the other images of the batch"):
            smoothed(classifier).certify(images[:1])
    training[0].running_mean.copy_(statistics)
    smoothed(training).certify(images[:1])  # a module is put into evaluation mode
    assert torch.equal(training[0].running_mean, statistics)


def test_images_of_another_shape_are_refused(images):
    stream = smoothed(HalfSpace(), classes=2).stream()
    stream.add(0, images[0])
    with pytest.raises(ValueError, match="images of one run have one shape"):
        stream.add(1, images[0, :1])


def test_radii_that_no_image_reaches_settle_at_once():
    sure = [smoothed(HalfSpace(5.0), Budget(50, 4000, radii), classes=2).certify(torch.zeros(1, 1, 2, 4))[0] for radii in ((0.2,), (0.2, 99.0))]
    assert sure[0].draws == sure[1].draws < 4000


def test_a_log_tells_the_votes_behind_an_early_certificate(images):
    found = smoothed(budget=EARLY, rule="main").certify(images)
    for result in found:
        again = dataclasses.replace(Smoothing((0.5, 0.5), "main", 0.01, anytime=True), tail=0.0)
        certificate = again.certify(result.best[:, :-1], result.best_draws, result.certificate.predicted)
        if not result.certificate.is_abstention:
            assert certificate.radius == pytest.approx(result.certificate.radius, rel=1e-6)
        assert result.best_draws <= result.draws
