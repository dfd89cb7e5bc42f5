from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.cafe.defences import FakeGradients, GaussianNoise, Pruning, combine, nearest_sorted_normal
from shared.data.offline import digits
from shared.seeding import generator


def drawn(seed: int = 0) -> dict[str, Tensor]:
    chance = generator(seed, "gradients")
    return {name: 1e-3 * torch.randn(*shape, generator=chance) for name, shape in {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (3, 2, 2)}.items()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in gradients.values()])


@pytest.mark.parametrize("scope", ["party", "tensor"])
def test_pair_keeps_the_order_and_nothing_else(scope):
    true = drawn()
    fake = FakeGradients(scope=scope, seed=3)(true, 4, 1)
    assert {name: value.shape for name, value in fake.items()} == {name: value.shape for name, value in true.items()}
    for a, b in [(flat(true), flat(fake))] if scope == "party" else [(true[name].reshape(-1), fake[name].reshape(-1)) for name in true]:
        assert torch.equal(a.argsort(), b.argsort())
    assert flat(fake).std() == pytest.approx(1.1, rel=0.3)


def test_the_candidate_is_the_nearest_of_all_that_were_drawn():
    true = np.sort(torch.randn(6, generator=generator(0, "true")).numpy())
    chance = generator(1, "draws")
    candidates = [np.sort(torch.randn(5, 6, generator=chance).numpy() * np.float32(0.7), axis=1) for _ in range(4)]  # a set and three redraws
    nearest = min(itertools.chain(*candidates), key=lambda psi: sum((psi - true) ** 2))
    found = nearest_sorted_normal(true, 0.7, candidates=5, tau=0.0, redraws=3, chance=generator(1, "draws"))
    np.testing.assert_allclose(found, nearest, rtol=1e-6)


def test_redraws_end_at_tau_and_are_bounded_when_it_is_out_of_reach():
    true = np.zeros(10, dtype=np.float32)
    chance, same = generator(0, "draws"), generator(0, "draws")
    first = nearest_sorted_normal(true, 1.0, 3, tau=100.0, redraws=50, chance=chance)
    np.testing.assert_array_equal(first, nearest_sorted_normal(true, 1.0, 3, tau=0.0, redraws=0, chance=same))
    unreachable = nearest_sorted_normal(np.zeros(20000, dtype=np.float32), 1.1, 2, tau=47.0, redraws=2, chance=chance)
    assert np.linalg.norm(unreachable) == pytest.approx(1.1 * 20000**0.5, rel=0.02)  # |sigma - std(g)| sqrt(D) is above tau


def test_many_candidates_are_drawn_in_portions(monkeypatch):
    true = np.sort(np.random.default_rng(0).normal(size=50)).astype(np.float32)
    whole = nearest_sorted_normal(true, 1.0, 64, 0.0, 0, generator(0, "draws"))
    monkeypatch.setattr("projects.cafe.defences.ENTRIES_AT_ONCE", 50 * 16)
    np.testing.assert_array_equal(whole, nearest_sorted_normal(true, 1.0, 64, 0.0, 0, generator(0, "draws")))


@pytest.mark.parametrize("mode", ["pair", "clip", "absclip"])
def test_the_variants_follow_their_formulas_entry_by_entry(mode):
    true, psi = np.random.default_rng(0).normal(size=(2, 200))
    formulas = {"pair": lambda g, p: p, "clip": lambda g, p: min(p, max(g, -p)), "absclip": lambda g, p: max(-abs(p), min(g, abs(p)))}
    np.testing.assert_array_equal(combine(true, psi, mode), [formulas[mode](g, p) for g, p in zip(true, psi, strict=True)])


def test_clip_of_the_port_uploads_noise_for_the_negative_half():
    true, psi = np.array([-0.3, -0.1, 0.1, 0.3]), np.array([-2.0, -1.0, 1.0, 2.0])
    np.testing.assert_array_equal(combine(true, psi, "clip"), [-2.0, -1.0, 0.1, 0.3])
    np.testing.assert_array_equal(combine(true, psi, "absclip"), true)


def test_absclip_takes_the_scale_of_the_gradient():
    true = drawn()
    fake = flat(FakeGradients("absclip")(true, 0, 0))
    assert (fake.abs() <= flat(true).abs()).all()
    assert 0.3 < fake.norm() / flat(true).norm() <= 1


def test_exact_zeros_are_kept_or_get_values_around_the_middle():
    true = {"weight": torch.randn(200, generator=generator(0, "g")) * (torch.arange(200) % 2)}
    kept = FakeGradients(zeros="keep")(true, 0, 0)["weight"]
    assert torch.equal(kept == 0, true["weight"] == 0)
    assert torch.equal(kept[1::2].argsort(), true["weight"][1::2].argsort())
    fakes = FakeGradients(zeros="fake")(true, 0, 0)["weight"]
    assert (fakes != 0).all()
    assert (fakes[::2].diff() >= 0).all()  # ties are ranked by their place
    assert fakes[::2].abs().max() < 1.1
    assert not FakeGradients(zeros="keep")({"weight": torch.zeros(5)}, 0, 0)["weight"].any()


def test_uploads_depend_on_seed_round_and_party_alone():
    true = drawn()
    for first, others in [(FakeGradients(seed=1), FakeGradients(seed=2)), (GaussianNoise(1.0, 1), GaussianNoise(1.0, 2))]:
        upload = flat(first(true, 2, 3))
        assert torch.equal(upload, flat(first(true, 2, 3)))
        for other in (first(true, 2, 4), first(true, 3, 3), others(true, 2, 3)):
            assert not torch.equal(upload, flat(other))


def test_defences_keep_the_type():
    double = {name: value.double() for name, value in drawn().items()}
    for defence in (FakeGradients(), FakeGradients("absclip", scope="tensor"), GaussianNoise(0.1), Pruning(0.5)):
        assert all(value.dtype == torch.float64 for value in defence(double, 0, 0).values())


def test_noise_has_its_deviation():
    noise = GaussianNoise(1e-2)({"weight": torch.zeros(100, 100)}, 0, 0)["weight"]
    assert noise.std() == pytest.approx(1e-2, rel=0.05)


@pytest.mark.parametrize("scope", ["party", "tensor"])
def test_pruning_keeps_the_largest_part(scope):
    true = drawn()
    pruned = Pruning(0.2, scope)(true, 0, 0)
    for a, b in [(flat(true), flat(pruned))] if scope == "party" else [(true[name].reshape(-1), pruned[name].reshape(-1)) for name in true]:
        kept = b != 0
        assert kept.sum() == -(-len(a) // 5)
        assert torch.equal(a[kept], b[kept])
        assert a[kept].abs().min() > a[~kept].abs().max()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FakeGradients("swap"), "mode must be one of pair, clip, absclip"),
        (lambda: FakeGradients(scope="layer"), "scope must be one of party, tensor"),
        (lambda: FakeGradients(zeros="drop"), "zeros must be one of fake, keep"),
        (lambda: FakeGradients(sigma=0.0), "sigma must be positive"),
        (lambda: FakeGradients(candidates=0), "candidates must be at least 1"),
        (lambda: GaussianNoise(-1.0), "std must be 0 or more"),
        (lambda: Pruning(0.0), "keep must be above 0"),
    ],
)
def test_wrong_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def accuracy(defence, rounds: int = 150) -> float:
    """Train four small nets on quarters of digits and a linear top net and return the test accuracy."""

    def blocks(images: Tensor) -> list[Tensor]:
        return [quarter.flatten(1) for half in images.chunk(2, 2) for quarter in half.chunk(2, 3)]

    train, test = digits("train", size=8), digits("test", size=8)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        bottoms = [nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)) for _ in range(4)]
        server = nn.Linear(40, 10)
    optimiser = torch.optim.Adam([p for net in (*bottoms, server) for p in net.parameters()], lr=3e-3)

    def logits(parts: list[Tensor]) -> Tensor:
        return server(torch.cat([net(part) for net, part in zip(bottoms, parts, strict=True)], 1))

    chance = generator(0, "batches")
    for number in range(rounds):
        batch = torch.randperm(len(train), generator=chance)[:40]
        optimiser.zero_grad()
        F.cross_entropy(logits(blocks(train.images[batch])), train.labels[batch]).backward()
        for party, net in enumerate(bottoms):
            uploaded = defence({name: p.grad for name, p in net.named_parameters()}, number, party)
            for name, parameter in net.named_parameters():
                parameter.grad = uploaded[name]
        optimiser.step()
    with torch.no_grad():
        return (logits(blocks(test.images)).argmax(1) == test.labels).float().mean().item()


@pytest.mark.slow
def test_clip_of_the_port_wrecks_training_and_the_others_do_not():
    true = accuracy(Pruning(1.0))
    pair, absclip, clip = (accuracy(FakeGradients(mode, candidates=2, redraws=0)) for mode in ("pair", "absclip", "clip"))
    assert true > 0.85
    assert pair > true - 0.06
    assert absclip > true - 0.03
    assert clip < true - 0.2
