"""The search: the planted answer, its steps and schedules, pruning, resuming, several processes."""

import copy
import itertools
import math

import pytest
import torch
from helpers.processes import run_together, start
from helpers.searching import SPACE, loaders, search, search_together, search_until_killed
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F

from projects.forgery_nas.bilevel import Unrolling, unrolled_gradients
from projects.forgery_nas.genotype import CELLS, Genotype, edge_number, histogram
from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.planted import planted
from projects.forgery_nas.search import ArchitectureSearch
from projects.forgery_nas.supernet import Supernet
from shared.callbacks import ResumePoint

# ---- the planted answer


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in (("eoi", "gumbel"), ("alpha", "mixture"), ("perturb", "mixture"))]


@pytest.mark.parametrize(("level", "relaxation"), [("alpha", "gumbel"), ("general", "gumbel"), *SLOW])
def test_the_planted_answer_is_found(level, relaxation):
    found = planted(level, relaxation, seed=1)
    assert found["right"] == found["signal"] >= 2
    assert found["accuracy"] > 0.9


# ---- a step


def test_a_step_moves_the_architecture_by_adam_and_then_the_weights_by_sgd():
    options = SearchOptions(space=SPACE, channels=4, layers=2, nodes=2, k=2)
    before, batches = ArchitectureSearch(options).net, []

    class Noting(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            batches.append(batch)

    step = {"warmup": 0, "clip": 0.5, "weight_decay": 0.01, "lr_architecture": 0.1}
    module = search(1, loaders(length=8), callbacks=[Noting()], prune_every=0, relaxation="mixture", **step)
    [batch] = batches

    def loss(role):
        return F.cross_entropy(before(batch[role]["image"]), batch[role]["label"])

    architecture, weights = before.architecture_parameters(), before.weight_parameters()
    for parameter, gradient in zip(architecture, torch.autograd.grad(loss("val"), architecture), strict=True):
        parameter.grad = gradient
    torch.optim.Adam(architecture, 0.1, (0.5, 0.999), weight_decay=1e-3).step()
    gradients = torch.autograd.grad(loss("train"), weights)
    factor = min(1.0, 0.5 / torch.stack([gradient.norm() for gradient in gradients]).norm().item())
    expected = [weight - 0.05 * (factor * gradient + 0.01 * weight) for weight, gradient in zip(weights, gradients, strict=True)]
    assert factor < 1, "so that clipping is seen"
    torch.testing.assert_close(module.net.architecture_parameters(), architecture, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(module.net.weight_parameters(), expected, atol=1e-6, rtol=1e-4)


def test_the_second_order_is_the_gradient_through_the_step():
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 3, dtype=torch.float64, generator=random).requires_grad_() for _ in range(2)]
    architecture = [torch.randn(4, 3, dtype=torch.float64, generator=random).requires_grad_()]
    inputs = torch.randn(2, 6, 3, dtype=torch.float64, generator=random)
    buffers = [torch.randn(4, 3, dtype=torch.float64, generator=random), None]
    unrolling = Unrolling(0.3, 0.9, 0.05, buffers)

    def loss(role, weights):
        first, second = weights
        return (torch.tanh(inputs[role] @ (first * architecture[0].sigmoid()).T) * (inputs[role] @ second.T)).sin().square().mean()

    gradients = torch.autograd.grad(loss(0, weights), weights, create_graph=True)
    moved = [
        weight - 0.3 * ((0 if buffer is None else 0.9 * buffer) + gradient + 0.05 * weight)
        for weight, gradient, buffer in zip(weights, gradients, buffers, strict=True)
    ]
    [expected] = torch.autograd.grad(loss(1, moved), architecture)
    [first_order] = torch.autograd.grad(loss(1, [weight.detach() for weight in moved]), architecture)
    kept = [weight.detach().clone() for weight in weights]
    [found] = unrolled_gradients(lambda: loss(0, weights), lambda: loss(1, weights), weights, architecture, unrolling)
    difference = (found - expected).norm() / (first_order - expected).norm()
    assert difference < 1e-3, "the product with the second derivative is a central difference of length 0.01"
    assert all(torch.equal(weight, was) for weight, was in zip(weights, kept, strict=True)), "the weights are put back"


def test_the_second_order_searches_too():
    module = search(2, order=2, prune_every=0)
    assert torch.isfinite(module.net.alpha).all()
    assert not torch.equal(module.net.alpha, search(2, prune_every=0).net.alpha)


# ---- schedules and pruning


class Watched(Callback):
    """Notes what every step ends with, and the optimisers before and after every pruning."""

    def __init__(self):
        self.steps, self.prunings = [], []

    def setup(self, trainer, module, stage):
        prune, renew = module.net.prune, module._renew_optimizers

        def noted(*args, **kwargs):
            self.prunings.append(
                {"alpha": module.net.alpha.detach().clone(), "before": self.momenta(trainer), "alive": module.net.table.alive.clone()}
            )
            return prune(*args, **kwargs)

        def renewed():
            renew()
            sgd, adam = trainer.optimizers
            self.prunings[-1] |= {"after": self.momenta(trainer), "adam": dict(adam.state), "kept": module.net.alpha.detach().clone()}
            self.prunings[-1] |= {
                "left": module.net.table.alive.clone(),
                "weights": [*module.net.weight_parameters()],
                "sgd": sgd.param_groups[0]["params"],
            }

        module.net.prune, module._renew_optimizers = noted, renewed

    @staticmethod
    def momenta(trainer):
        return {parameter: state["momentum_buffer"].clone() for parameter, state in trainer.optimizers[0].state.items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        net, rate = module.net, trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((net.alpha.detach().clone(), net.beta.detach().clone(), net.table.count, net.k, rate))


@pytest.fixture(scope="module")
def pruned():
    watch = Watched()
    return search(5, callbacks=[watch], k_schedule=True), watch


def test_the_schedule_of_section_2_5(pruned):
    module, watch = pruned
    *_, counts, ks, rates = zip(*watch.steps, strict=True)
    assert counts == (*[5] * 6, *[4] * 3, *[3] * 3, *[2] * 3), "a warm-up of an epoch, and a pruning after each further one"
    assert ks == (*[2] * 12, *[1] * 3), "K is halved when half the candidates are left"
    assert rates == pytest.approx([0.025 * (1 + math.cos(math.pi * step / 15)) for step in range(15)])
    initial = ArchitectureSearch(module.options).net
    for alpha, beta, *_ in watch.steps[:3]:
        assert torch.equal(alpha, initial.alpha), "alpha waits for the end of the warm-up"
        assert torch.equal(beta, initial.beta)
    assert not torch.equal(watch.steps[3][0], initial.alpha)
    assert not torch.equal(watch.steps[3][1], initial.beta)


def test_a_pruning_keeps_what_survives(pruned):
    module, watch = pruned
    assert len(watch.prunings) == 3
    for stage in watch.prunings:
        assert torch.equal(stage["alpha"], stage["kept"])
        assert ((stage["alive"] & ~stage["left"]).sum(-1) == 1).all()
        assert not (stage["left"] & ~stage["alive"]).any()
        assert stage["adam"] == {}, "its moments are those of other softmaxes"
        assert stage["sgd"] == stage["weights"]
        weights = set(stage["weights"])
        assert set(stage["after"]) == weights & set(stage["before"])
        assert all(torch.equal(momentum, stage["before"][weight]) for weight, momentum in stage["after"].items())
    assert len(watch.prunings[0]["after"]) < len(watch.prunings[0]["before"])
    assert not module.net.table.alive[..., SPACE.index("none")].any(), "none is never in the result"


def test_the_history_tells_of_every_stage(pruned):
    module, _ = pruned
    assert [(row["step"], row["epoch"], row["alive"], row["k"]) for row in module.history] == [
        (6, 2, 4, 2),
        (9, 3, 3, 2),
        (12, 4, 2, 1),
        (15, 5, 2, 1),
    ]
    dead = set()
    for row in module.history:
        dropped = {tuple(candidate) for candidate in row["dropped"]}
        assert {(cell, edge) for cell, edge, _ in dropped} == (set(itertools.product(CELLS, range(5))) if dropped else set())
        assert not dropped & dead
        dead |= dropped
        genotype = Genotype.from_json(row["genotype"])
        for cell in CELLS:
            for node, pairs in enumerate(getattr(genotype, cell)):
                assert pairs[0][1] != pairs[1][1]
                assert all(name != "none" and (cell, edge_number(node, source), name) not in dead for name, source in pairs)
        assert row["skips"] == histogram(genotype)["normal"]["skip_connect"]
    assert not module.history[-1]["dropped"]
    assert module.history[-1]["genotype"] == module.genotype.to_json()
    seconds = [row["seconds"] for row in module.history]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_the_temperature_falls_after_the_warm_up(monkeypatch):
    seen, sample = [], Supernet.sample
    monkeypatch.setattr(Supernet, "sample", lambda net, noise, temperature: (seen.append(temperature), sample(net, noise, temperature))[1])
    search(4, loaders(length=8), prune_every=0, temperature=3.0, temperature_decay=0.8)
    assert sorted(set(seen), reverse=True) == pytest.approx([3.0, 2.4, 1.92])
    assert seen == sorted(seen, reverse=True)


def test_perturb_measures_what_is_lost_without_each_candidate():
    data = loaders()
    module = search(1, data, level="perturb", relaxation="mixture", perturb_samples=16, prune_every=0, nodes=1)
    data["val"].sampler.skip = 0
    images, order = data["val"].dataset, list(data["val"].sampler)[:16]
    losses = []
    for alpha in (None, (0, 0, 1), (1, 1, 3)):
        net = copy.deepcopy(module.net)
        if alpha:
            net.table.alive[alpha] = False
        with torch.no_grad():
            batches = [(torch.stack([images[i]["image"] for i in part]), images.labels[part]) for part in (order[:8], order[8:])]
            losses.append(sum(F.cross_entropy(net(pixels), labels) for pixels, labels in batches) / 2)
    assert module.importance.rise[0, 0, 1].item() == pytest.approx((losses[1] - losses[0]).item(), abs=1e-5)
    assert module.importance.rise[1, 1, 3].item() == pytest.approx((losses[2] - losses[0]).item(), abs=1e-5)


class Favouring(Callback):
    """Begins with an alpha for skips, and beta for what they are on."""

    def on_train_start(self, trainer, module):
        with torch.no_grad():
            module.net.alpha[..., SPACE.index("skip_connect")] += 5


@pytest.mark.parametrize(("limit", "skips"), [(None, 4), (1, 1)])
def test_skips_are_limited_and_their_number_reported(limit, skips):
    module = search(1, loaders(length=8), callbacks=[Favouring()], level="alpha", prune_every=0, skip_limit=limit)
    assert module.history[-1]["skips"] == histogram(module.genotype)["normal"]["skip_connect"] == skips
    assert histogram(module.genotype)["reduce"]["skip_connect"] == 4


# ---- resuming and several processes


def timeless(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.mark.slow
def test_a_killed_search_ends_as_an_unbroken_one(tmp_path, pruned):
    process = start(search_until_killed, str(tmp_path))
    process.join(120)
    assert process.exitcode == -9
    again = search(5, callbacks=[ResumePoint(tmp_path, 100)], ckpt_path=tmp_path / "last.ckpt", k_schedule=True)
    whole, _ = pruned
    assert timeless(again.history) == timeless(whole.history)
    assert torch.equal(again.net.table.alive, whole.net.table.alive)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path):
    run_together(search_together, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["paths"], second["paths"])
    assert first["dropped"] == second["dropped"]
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "large"}, "no search space 'large': choose full, small, plain"),
        ({"space": ["conv"], "keep": 1}, "no operation 'conv'"),
        ({"relaxation": "soft"}, "gumbel or mixture"),
        ({"order": 3}, "the order 1 or 2"),
        ({"level": "beta"}, "choose alpha, eoi, general, perturb"),
        ({"warmup": -1}, "0 or more"),
        ({"keep": 12}, "keep 1 to 11"),
        ({"temperature": 0}, "temperature positive"),
        ({"nodes": 0}, "at least one channel, layer, node"),
        ({"epochs": 59}, "a pruning every 5 until 2 of 11 candidates are left take 60"),
        ({"channels": 6}, "K must divide the 6 channels"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ArchitectureSearch(SearchOptions(**({"layers": 1, "nodes": 1} | options)))
