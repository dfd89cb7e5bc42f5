"""That the server's nets are the paper's, and that their gradients are the derivatives of the batch's mean loss."""

import pytest
import torch
from torch.func import functional_call

from projects.vafl.heads import ConcatHead, SumHead, WeightedHead, build_head
from shared.seeding import generator

HEADS = {
    "sum": lambda: SumHead([4, 4, 4], 4),
    "linear": lambda: ConcatHead([4, 2, 6], 4),
    "layers": lambda: ConcatHead([4, 2, 6], 4, [7, 5]),
    "weighted": lambda: WeightedHead([6, 3, 3], 3, 4, [7]),
}


def world(kind, records=9):
    """Return a head in float64 with weights that are not zero, embeddings and labels."""
    head = HEADS[kind]().double()
    chance = generator(0, "world", kind)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
    return head, torch.randn(records, 12, generator=chance, dtype=torch.float64), torch.randint(4, (records,), generator=chance)


def parameters(net):
    """Count the parameters of a net."""
    return sum(parameter.numel() for parameter in net.parameters())


def mean_loss(logits, labels):
    """Compute the mean cross-entropy by its definition."""
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -chances[range(len(labels)), labels].log().mean()


@pytest.mark.parametrize("kind", HEADS)
def test_the_pullback_is_the_derivative(kind):
    head, embeddings, labels = world(kind)
    loss, signal, gradients = head.pullback(embeddings, labels)
    leaf = embeddings.clone().requires_grad_()
    expected = mean_loss(head(leaf), labels)
    torch.testing.assert_close(loss, expected.detach())
    for one, other in zip([signal, *gradients], torch.autograd.grad(expected, [leaf, *head.parameters()]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert not one.requires_grad
    weights = {name: parameter.detach() for name, parameter in head.named_parameters()}
    ways = {name: torch.randn(w.shape, generator=generator(1, name), dtype=w.dtype) for name, w in weights.items()}
    way = torch.randn(embeddings.shape, generator=generator(1, "embeddings"), dtype=torch.float64)

    def along(step):
        moved = {name: w + step * ways[name] for name, w in weights.items()}
        return float(mean_loss(functional_call(head, moved, (embeddings + step * way,)), labels))

    total = float((signal * way).sum()) + sum(float((one * ways[name]).sum()) for one, name in zip(gradients, weights, strict=True))
    assert total == pytest.approx((along(1e-6) - along(-1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_pullback_works_where_gradients_are_switched_off(kind, mode):
    head, embeddings, labels = world(kind)
    _, expected, _ = head.pullback(embeddings, labels)
    with mode():
        loss, signal, _ = head.pullback(embeddings * 1, labels + 0)
    torch.testing.assert_close(signal, expected)
    assert not loss.requires_grad


def test_every_client_gets_the_same_signal_from_a_sum():
    head, embeddings, labels = world("sum")
    first, second, third = head.pullback(embeddings, labels)[1].chunk(3, dim=1)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    torch.testing.assert_close(head(embeddings), sum(embeddings.chunk(3, dim=1)) + head.bias)


def test_large_logits_leave_the_loss_of_a_sum_finite():
    head = SumHead([4, 4], 4)
    loss, signal, _ = head.pullback(torch.full((2, 8), 1e4) * torch.arange(8), torch.tensor([0, 3]))
    assert loss.isfinite()
    assert signal.isfinite().all()


def test_twelve_views_are_averaged_before_the_papers_three_layers():
    head = build_head("weighted", [1536] * 4, 40, [256, 100], 0, vector=512)
    assert parameters(head) == 12 + 512 * 256 + 256 + 256 * 100 + 100 + 100 * 40 + 40 == 161_080
    embeddings = torch.rand(2, 4 * 1536)
    torch.testing.assert_close(head(embeddings), head.layers(embeddings.view(2, 12, 512).mean(1)))


def test_each_vector_has_its_own_weight():
    head, embeddings, _ = world("weighted")
    summed = sum(weight * part for weight, part in zip(head.weights, embeddings.split(3, dim=1), strict=True))
    torch.testing.assert_close(head(embeddings), head.layers(summed))


def test_the_mortality_head_is_one_connected_layer():
    assert parameters(build_head("concat", [16] * 4, 2, [], 0)) == 64 * 2 + 2


def test_weights_are_the_seeds_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (build_head("concat", [4, 2], 3, [5], seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


REFUSED = {
    "sum-of-others": (("sum", [4, 5], 4, [], 0), "give every client 4 outputs"),
    "sum-with-layers": (("sum", [4, 4], 4, [8], 0), "choose concat"),
    "broken-vectors": (("weighted", [4, 6], 4, [8], 0, 4), "divides all of them"),
    "unequal-clients": (("weighted", [4, 6], 4, [8], 0), "divides all of them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_mend(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build_head(*arguments)
