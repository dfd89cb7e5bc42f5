import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.forgery_nas.alive import AliveTable, Candidate, edge_softmax, operation_softmax
from projects.forgery_nas.candidates import MixedOperation, State, shuffle
from projects.forgery_nas.genotype import CELLS, edges, random_genotype
from projects.forgery_nas.operations import SMALL_SPACE, SPACE, Zero, build_operation
from projects.forgery_nas.supernet import Supernet, gumbel

SIZE = 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(space=SMALL_SPACE, **options):
    torch.manual_seed(0)
    net = Supernet(space, **({"channels": 4, "layers": 3, "k": 2, "nodes": 2} | options)).double()
    with torch.no_grad():
        net.alpha.normal_(generator=generator(1))
        net.beta.normal_(generator=generator(2))
    return net


def images(count=3, size=SIZE):
    return torch.rand(count, 3, size, size, dtype=torch.float64, generator=generator())


# ---- the table


def test_every_pruning_drops_one_candidate_of_every_edge():
    table, random = AliveTable(SPACE, nodes=3), generator()
    for stage in range(1, len(SPACE)):
        before, scores = table.alive.clone(), torch.rand(2, 9, 11, generator=random)
        dropped = table.prune(scores, is_last=stage == len(SPACE) - 1)
        gone = before & ~table.alive
        assert (gone.sum(-1) == 1).all()
        assert not (table.alive & ~before).any(), "what is dead stays dead"
        assert len(dropped) == len(set(dropped)) == 18
        assert {(CELLS.index(cell), edge, SPACE.index(name)) for cell, edge, name in dropped} == {tuple(place) for place in gone.nonzero().tolist()}
        if stage < len(SPACE) - 1:
            lowest = scores.masked_fill(~before, torch.inf).argmin(-1, keepdim=True)
            assert gone.gather(2, lowest).all()
        assert (table.stage, table.count) == (stage, len(SPACE) - stage)
    assert not table.alive[..., SPACE.index("none")].any()
    with pytest.raises(ValueError, match="nothing to prune"):
        table.prune(scores)


def test_none_goes_with_the_last_pruning_whatever_its_score():
    table = AliveTable(("none", "a", "b", "c"), nodes=1)
    scores = torch.tensor([9.0, 1.0, 2.0, 3.0]).expand(2, 2, 4).clone()
    scores[0, 0, 0] = -1  # on one edge it goes by itself
    table.prune(scores)
    assert table.columns(0, 0) == [1, 2, 3]
    assert table.columns(0, 1) == [0, 2, 3]
    table.prune(scores, is_last=True)
    assert table.columns(0, 0) == [2, 3]
    assert table.columns(1, 1) == [2, 3]


def test_of_equal_scores_the_first_goes_and_wrong_ones_are_named():
    table = AliveTable(("a", "b", "c"), nodes=1)
    assert set(table.prune(torch.zeros(2, 2, 3))) == {Candidate(cell, edge, "a") for cell in CELLS for edge in range(2)}
    table.prune(torch.tensor([math.nan, 1.0, 2.0]).expand(2, 2, 3))  # the dead are not looked at
    with pytest.raises(ValueError, match="diverged"):
        AliveTable(("a", "b"), nodes=1).prune(torch.full((2, 2, 2), math.nan))
    with pytest.raises(ValueError, match="different operations"):
        AliveTable(("a", "a"))
    with pytest.raises(ValueError, match="one besides none"):
        AliveTable(("none",))


def test_the_table_is_plain_data():
    table = AliveTable(SMALL_SPACE, nodes=2)
    table.prune(torch.rand(2, 5, 7, generator=generator()))
    again = AliveTable(SMALL_SPACE, nodes=2)
    again.load_state_dict(table.state_dict())
    assert torch.equal(again.alive, table.alive)
    assert sum(is_alive for _, is_alive in table.rows()) == 60
    assert [candidate for candidate, _ in table.rows()][7] == Candidate("normal", 1, "max_pool_3x3")
    with pytest.raises(ValueError, match="another search"):
        AliveTable(SPACE, nodes=2).load_state_dict(table.state_dict())


def test_softmaxes_are_over_the_living_and_over_the_edges_of_a_node():
    table, random = AliveTable(SMALL_SPACE, nodes=3), generator()
    table.prune(torch.rand(2, 9, 7, generator=random))
    alpha, beta = torch.randn(2, 9, 7, generator=random), torch.randn(2, 9, generator=random)
    found = operation_softmax(alpha, table.alive)
    for cell in range(2):
        for edge in range(9):
            living = table.columns(cell, edge)
            torch.testing.assert_close(found[cell, edge, living], alpha[cell, edge, living].softmax(0))
    assert (found[~table.alive] == 0).all()
    weights = edge_softmax(beta, 3)
    torch.testing.assert_close(weights[:, :2], beta[:, :2].softmax(1))
    torch.testing.assert_close(weights[:, 2:5], beta[:, 2:5].softmax(1))
    torch.testing.assert_close(weights[:, 5:], beta[:, 5:].softmax(1))


# ---- the network


def plain_operation(net, cell, edge, name):
    """Build an operation as the paper has it, with the weights that the supernet has for it."""
    stride = 2 if net.is_reduction[cell] and edges(net.table.nodes)[edge][1] < 2 else 1
    channels = net.channels[1 + cell] // net.k
    operation = build_operation(name, channels, stride, False).double()
    if name == "none":
        return operation
    mine = list(operation.parameters())
    for own, theirs in zip(mine, net.cells[cell].edges[edge].candidates[name.replace(".", "p")].parameters(), strict=True):
        own.data = theirs.data
    return nn.Sequential(operation, nn.BatchNorm2d(channels, affine=False).double()) if "pool" in name else operation


def straightforward(net, pixels):
    """PC-DARTS as it is written: every candidate of every edge apart, a shuffle on every edge."""
    operations, weights = operation_softmax(net.alpha, net.table.alive), edge_softmax(net.beta, net.table.nodes)
    before_last = last = net.stem(pixels)
    for number, cell in enumerate(net.cells):
        kind = int(net.is_reduction[number])
        states = [cell.preprocess0(before_last), cell.preprocess1(last)]
        for node in range(net.table.nodes):
            total = 0
            for edge, (end, source) in enumerate(edges(net.table.nodes)):
                if end != node:
                    continue
                part, rest = states[source].tensor_split([states[source].shape[1] // net.k], dim=1)
                names = [name for column, name in enumerate(net.table.space) if net.table.alive[kind, edge, column]]
                terms = [operations[kind, edge, net.table.space.index(name)] * plain_operation(net, number, edge, name)(part) for name in names]
                rest = F.max_pool2d(rest, 2, ceil_mode=True) if kind and source < 2 and net.k > 1 else rest
                joined = F.channel_shuffle(torch.cat([sum(terms), rest], dim=1), net.k) if net.k > 1 else sum(terms)
                total = total + weights[kind, edge] * joined
            states.append(total)
        before_last, last = last, torch.cat(states[2:], dim=1)
    return net.linear(last.mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"k": 1}, {"k": 4, "layers": 2}, {"size": 11}, {"reductions": [1]}])
def test_the_mixture_is_that_of_section_2_3(options):
    size = options.pop("size", SIZE)
    net = small(**options)
    net.prune(torch.rand(net.alpha.shape, generator=generator()))
    torch.testing.assert_close(net(images(size=size)), straightforward(net, images(size=size)), rtol=1e-7, atol=1e-7)
    dominant = net.alpha.masked_fill(~net.table.alive, -torch.inf).argmax(-1)
    assert torch.equal(net.choice, dominant)


def test_batch_norms_have_no_weights_and_use_the_batch():
    net = small().eval()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 50
    assert all(norm.weight is None and norm.running_mean is None and not norm.track_running_stats for norm in norms)
    in_evaluation, path = net(images()), net.sample(gumbel(net.alpha.shape, generator()), 1.0)
    torch.testing.assert_close(in_evaluation, net.train()(images()))
    torch.testing.assert_close(net.eval()(images(), path), net.train()(images(), path))


def test_images_may_be_integers():
    net, levels = small().float(), (255 * images()).byte()
    torch.testing.assert_close(net(levels), net(levels.float() / 255))


def test_shared_weights_give_the_same_at_less_cost(monkeypatch):
    net = small(SPACE, share_theta=True, k=1)
    apart = small(SPACE, k=1)
    assert sum(p.numel() for p in net.parameters()) < 0.5 * sum(p.numel() for p in apart.parameters())
    together = net(images())
    gradients = torch.autograd.grad(together.square().sum(), [net.alpha, *net.weight_parameters()])
    for cell in net.cells:
        for edge in cell.edges:
            monkeypatch.setattr(edge, "families", {})
    one_by_one = net(images())
    torch.testing.assert_close(together, one_by_one, rtol=1e-8, atol=1e-8)
    for found, expected in zip(gradients, torch.autograd.grad(one_by_one.square().sum(), [net.alpha, *net.weight_parameters()]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_genotypes_path_is_the_genotype():
    net, genotype = small(k=1), random_genotype(SMALL_SPACE, generator(5), nodes=2)
    states = [net.stem(images())] * 2
    for number, cell in enumerate(net.cells):
        genes = genotype.reduce if net.is_reduction[number] else genotype.normal
        inner = [cell.preprocess0(states[-2]), cell.preprocess1(states[-1])]
        for node, pairs in enumerate(genes):
            inner.append(sum(plain_operation(net, number, node * (node + 3) // 2 + source, name)(inner[source]) for name, source in pairs))
        states.append(torch.cat(inner[2:], dim=1))
    expected = net.linear(states[-1].mean((2, 3)))
    torch.testing.assert_close(net(images(), net.path(genotype)), expected)
    chosen = [(cell, edge, choice) for cell, row in enumerate(net.choice.tolist()) for edge, choice in enumerate(row) if choice >= 0]
    kept = {(CELLS[cell], edges(2)[edge], SMALL_SPACE[choice]) for cell, edge, choice in chosen}
    assert kept == {(cell, (node, source), name) for cell in CELLS for node, pairs in enumerate(getattr(genotype, cell)) for name, source in pairs}
    (name, source), _ = genotype.normal[1]
    net.table.alive[0, 2 + source, SMALL_SPACE.index(name)] = False
    with pytest.raises(ValueError, match=f"{name} on edge {2 + source} of the normal cell"):
        net.path(genotype)
    with pytest.raises(ValueError, match="3 nodes"):
        net.path(random_genotype(SMALL_SPACE, generator(5), nodes=3))


# ---- sampling


def test_gumbel_max_samples_the_softmax_of_the_living():
    net = small(nodes=1)
    net.prune(torch.rand(net.alpha.shape, generator=generator(3)))
    random, counts, draws = generator(4), Counter(), 1500
    for _ in range(draws):
        choice = net.sample(gumbel(net.alpha.shape, random), 2.0).choice
        counts.update((cell, edge, choice[cell, edge].item()) for cell in range(2) for edge in range(2))
    expected = net.probabilities()
    for cell in range(2):
        for edge in range(2):
            living = net.table.columns(cell, edge)
            observed = torch.tensor([counts[cell, edge, column] for column in living], dtype=torch.float64)
            assert observed.sum() == draws, "nothing dead is sampled"
            wanted = draws * expected[cell, edge, living]
            assert ((observed - wanted).square() / wanted).sum() < 22.5, "chi square of 5 degrees at 0.0004"


def test_the_gradient_through_a_sample_is_that_of_its_gumbel_softmax():
    net, noise, temperature = small(nodes=1), gumbel((2, 2, 7), generator(6)), 0.7
    sample = net.sample(noise, temperature)
    assert torch.equal(sample.operations.detach(), F.one_hot(sample.choice, 7).double()), "the weights themselves are 0 and 1"
    pull = torch.randn(2, 2, dtype=torch.float64, generator=generator(7))
    loss = (pull * sample.operations.sum(-1)).sum()
    [found] = torch.autograd.grad(loss, [net.alpha])
    soft = ((net.alpha.detach() + noise) / temperature).softmax(-1)
    chosen = F.one_hot((net.alpha.detach() + noise).argmax(-1), 7)
    own = (soft * chosen).sum(-1, keepdim=True)
    torch.testing.assert_close(found, pull[..., None] * own * (chosen - soft) / temperature)  # d p_i / d a_j = p_i (delta_ij - p_j) / T


def test_only_the_sampled_candidates_are_computed(monkeypatch):
    net, computed = small(), []
    original = MixedOperation.forward
    monkeypatch.setattr(MixedOperation, "forward", lambda self, state, names: (computed.append(len(names)), original(self, state, names))[1])
    sample = net.sample(gumbel(net.alpha.shape, generator()), 1.0)
    net(images(), sample)
    assert torch.equal(net.choice, sample.choice)
    assert max(computed) == 1
    assert len(computed) == 3 * 5


def test_the_gradient_of_alpha_is_that_of_finite_differences():
    net = small(layers=2, k=1)
    labels = torch.tensor([0, 1, 1])
    for mix in (net.mixture, lambda: net.sample(gumbel(net.alpha.shape, generator(8)), 1.0)):
        [of_beta] = torch.autograd.grad(F.cross_entropy(net(images(), mix()), labels), [net.beta])
        place, step = (1, 3), 1e-5
        losses = []
        for sign in (1, -2):
            with torch.no_grad():
                net.beta[place] += sign * step
                losses.append(F.cross_entropy(net(images(), mix()), labels))
        with torch.no_grad():
            net.beta[place] += step
        assert of_beta[place].item() == pytest.approx((losses[0] - losses[1]).item() / (2 * step), rel=1e-4, abs=1e-8)


def test_all_none_is_a_bypass_or_nothing():
    space = ("skip_connect", "none")
    for k, is_zero in ((2, False), (1, True)):
        net = small(space, k=k)
        with torch.no_grad():
            net.alpha[..., 1] = 1e3
        logits = net(images(), net.sample(gumbel(net.alpha.shape, generator()), 1.0))
        assert (net.choice == 1).all()
        assert bool((logits - net.linear.bias).abs().max() < 1e-12) is is_zero


def test_states_are_split_once_and_shuffled_round():
    features = torch.randn(2, 6, 5, 5, generator=generator())
    state = State(features, 2, 2)
    assert torch.equal(state.part, features[:, :2])
    assert torch.equal(state.bypass, F.max_pool2d(features[:, 2:], 2, ceil_mode=True))
    assert state.rectified is state.rectified
    assert state.zeros().shape == Zero(2)(features[:, :2]).shape
    assert torch.equal(shuffle(features, 3), F.channel_shuffle(features, 3))


# ---- pruning


def test_pruning_deletes_modules_and_leaves_the_rest_as_it_was():
    net = small()
    before, alpha = net.state_dict(), net.alpha.detach().clone()
    masked = net.mixture()
    dropped = net.prune(torch.rand(net.alpha.shape, generator=generator(9)))
    assert torch.equal(net.alpha.detach(), alpha), "the living keep their values, in their columns"
    after = net.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    gone = {name.partition(".candidates.")[2].partition(".")[0] for name in before.keys() - after.keys()}
    assert gone == {name.replace(".", "p") for _, _, name in dropped if name not in ("none", "max_pool_3x3", "skip_connect")}
    alive = net.table.alive
    expected = masked.operations * alive / (masked.operations * alive).sum(-1, keepdim=True)
    torch.testing.assert_close(net.mixture().operations, expected)


def test_without_a_candidate_it_is_as_if_it_were_pruned():
    net, place = small(), (0, 3, 2)
    logits = net(images(), net.without(*place))
    net.table.alive[place] = False
    torch.testing.assert_close(logits, net(images()))
    net.table.alive[0, 3] = False
    net.table.alive[0, 3, 1] = True
    last = net.without(0, 3, 1)
    assert last.operations[0, 3].sum() == 0, "of the last one nothing is left"
    assert net(images(), last).isfinite().all()


def test_a_pruned_and_widened_network_is_restored_with_its_weights():
    net, again = small(share_theta=True), small(share_theta=True)
    net.prune(torch.rand(net.alpha.shape, generator=generator(9)))
    net.widen(1)
    net.prune(torch.rand(net.alpha.shape, generator=generator(10)))
    again.restore(net.structure())
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(images()), net(images()))
    assert torch.equal(again.table.alive, net.table.alive)


def test_widening_keeps_the_filters():
    net = small()
    old = {name: weight.clone() for name, weight in net.state_dict().items()}
    torch.manual_seed(5)
    net.widen(1)
    first = net.state_dict()
    for name, weight in first.items():
        assert torch.equal(weight[tuple(slice(size) for size in old[name].shape)], old[name]), name
    assert any(weight.shape != old[name].shape for name, weight in first.items())
    torch.manual_seed(6)
    other = small()
    other.widen(1)
    assert all(torch.equal(weight, first[name]) for name, weight in other.state_dict().items()), "new filters are a function of the seed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, "K must divide the 4 channels"),
        ({"k": 0}, "K must divide"),
        ({"layers": 2, "reductions": [2]}, "numbers of cells"),
        ({"space": ("skip_connect", "conv")}, "no operation 'conv'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_architecture_and_weights_are_all_parameters():
    net = small()
    assert len(net.architecture_parameters()) == 2
    assert len({id(p) for p in [*net.architecture_parameters(), *net.weight_parameters()]}) == len(list(net.parameters()))
    assert [sum(net.is_reduction), net.is_reduction] == [2, [True, False, True]]
    assert small(layers=8).is_reduction == [False, False, False, True] * 2
