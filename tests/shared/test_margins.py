import math

import pytest
import torch
from torch.nn import functional as F

from shared.losses import MarginSoftmax, aam_logits, am_logits, margin_ramp
from shared.seeding import generator


def drawn(batch=7, classes=5):
    cosines = torch.rand(batch, classes, generator=generator(0, "cosines"), dtype=torch.float64) * 1.8 - 0.9
    labels = torch.randint(classes, (batch,), generator=generator(0, "labels"))
    return cosines, labels


def alone(cosine, margin):
    """The logit of the true class at scale 1 for each of (N,) cosines."""
    return aam_logits(torch.stack([cosine, torch.zeros_like(cosine)], 1), torch.zeros(len(cosine), dtype=torch.long), margin, 1.0)[:, 0]


@pytest.mark.parametrize("margin", [0.1, 0.2, 0.4])
def test_the_angular_margin_is_added_to_the_angle(margin):
    cosines, labels = drawn()
    expected = cosines.clone()
    for row, label in enumerate(labels.tolist()):
        assert cosines[row, label] > -math.cos(margin)  # short of the guard
        expected[row, label] = math.cos(math.acos(cosines[row, label]) + margin)
    torch.testing.assert_close(aam_logits(cosines, labels, margin, 32.0), 32 * expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_the_logit_falls_with_the_angle_also_beyond_the_guard(margin):
    angles = torch.linspace(0.001, math.pi - 0.001, 2001, dtype=torch.float64)
    logits = alone(angles.cos(), margin)
    assert (logits.diff() < 0).all()
    beyond = angles > math.pi - margin + 1e-9
    torch.testing.assert_close(logits[beyond], angles.cos()[beyond] - margin * math.sin(margin))
    at = torch.tensor([-math.cos(margin) + 1e-9, -math.cos(margin) - 1e-9], dtype=torch.float64)
    before, after = alone(at, margin).tolist()
    assert before == pytest.approx(-1, abs=1e-8)
    assert before - after == pytest.approx(math.cos(margin) + margin * math.sin(margin) - 1, abs=1e-8)  # m^2 / 2 for small m


def test_the_additive_margin_is_taken_from_the_cosine():
    cosines, labels = drawn()
    expected = 30 * (cosines - 0.2 * F.one_hot(labels, 5).double())
    torch.testing.assert_close(am_logits(cosines, labels, 0.2, 30.0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["aam", "am"])
def test_without_margin_it_is_the_softmax_of_scaled_cosines(kind):
    head = MarginSoftmax(6, 4, kind, margin=0.0, scale=20.0)
    embeddings, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])
    expected = 20 * F.cosine_similarity(embeddings[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(embeddings, labels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits", [aam_logits, am_logits], ids=["aam", "am"])
def test_gradients_agree_with_differences(logits):
    cosines, labels = drawn()
    cosines[0, labels[0]] = -0.99  # beyond the guard
    assert torch.autograd.gradcheck(lambda values: logits(values, labels, 0.3, 8.0), cosines.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_are_finite_where_embedding_and_weight_are_parallel(dtype):
    cosines = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1 + 1e-7, 0.0]], dtype=dtype, requires_grad=True)
    logits = aam_logits(cosines, torch.zeros(3, dtype=torch.long), 0.2, 32.0)
    F.cross_entropy(logits, torch.zeros(3, dtype=torch.long)).backward()
    assert cosines.grad.isfinite().all()
    torch.testing.assert_close(logits[0, 0].item(), 32 * math.cos(0.2), rtol=0, atol=32 * 1e-4)


def test_the_nearest_subcentre_counts():
    head = MarginSoftmax(6, 4, subcentres=3).double()
    embeddings = torch.randn(5, 6, generator=generator(0, "embeddings"), dtype=torch.float64)
    for row, embedding in enumerate(embeddings):
        for label in range(4):
            centres = head.weight[3 * label : 3 * label + 3].detach()
            best = max(float(embedding @ centre / embedding.norm() / centre.norm()) for centre in centres)
            assert head.cosines(embeddings)[row, label].item() == pytest.approx(best, abs=1e-12)
    head(embeddings, torch.zeros(5, dtype=torch.long)).sum().backward()
    assert head.weight.grad.isfinite().all()


def test_plain_softmax_is_a_linear_layer_on_raw_embeddings():
    head = MarginSoftmax(6, 4, "softmax", margin=0.3, scale=9.0)
    torch.nn.init.normal_(head.bias)
    embeddings = 5 * torch.randn(3, 6)
    torch.testing.assert_close(head(embeddings, torch.zeros(3, dtype=torch.long)), embeddings @ head.weight.T + head.bias)


@pytest.mark.parametrize("kind", ["aam", "am", "softmax"])
def test_logits_stay_in_full_precision_under_autocast(kind):
    head, embeddings, labels = MarginSoftmax(64, 10, kind), torch.randn(8, 64).bfloat16(), torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(embeddings, labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(embeddings.float(), labels))  # not only the type: nothing was rounded to 8 bits on the way


def test_a_schedule_may_set_the_margin():
    head, embeddings, labels = MarginSoftmax(6, 4, "am", margin=0.0), torch.randn(3, 6), torch.tensor([1, 2, 3])
    free = head(embeddings, labels)
    head.margin = margin_ramp(5, 0, 10, 0.2)
    assert head.margin == pytest.approx(0.2 * (1 - 10**-1.5))
    torch.testing.assert_close(free - head(embeddings, labels), head.margin * 32 * F.one_hot(labels, 4), rtol=0, atol=1e-5)


def test_a_head_learns_directions():
    directions, labels = torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8)
    embeddings = directions + 0.1 * torch.randn(32, 4, generator=generator(0, "noise"))
    head = MarginSoftmax(4, 4, subcentres=2)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(head(embeddings, labels), labels).backward()
        optimiser.step()
    assert (head.cosines(embeddings).argmax(1) == labels).all()


def test_the_ramp_rises_exponentially_and_is_held():
    assert [margin_ramp(step, 20, 40, 0.2) for step in (0, 20, 40, 1000)] == [0.0, 0.0, 0.2, 0.2]
    for step in range(21, 40):
        assert margin_ramp(step, 20, 40, 0.2) == pytest.approx(0.2 * (1 - math.exp(math.log(1e-3) * (step - 20) / 20)), abs=1e-15)
    assert margin_ramp(4, 5, 5, 0.2) == 0.0  # a ramp of no length is a switch
    assert margin_ramp(5, 5, 5, 0.2) == 0.2
    with pytest.raises(ValueError, match="ends at step 3, before its start at 4"):
        margin_ramp(0, 4, 3, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "arc"}, "unknown margin softmax 'arc': choose aam, am or softmax"),
        ({"margin": -0.1}, r"margin must lie in \[0, pi\), got -0.1"),
        ({"margin": math.nan}, "got nan"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
        ({"classes": 0}, "at least 1, got 6, 0 and 1"),
        ({"kind": "softmax", "subcentres": 2}, "one centre a class, got subcentres=2"),
    ],
    ids=["kind", "margin", "nan", "scale", "classes", "subcentres"],
)
def test_wrong_heads_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MarginSoftmax(**{"features": 6, "classes": 4, **arguments})


@pytest.mark.parametrize("kind", ["aam", "am", "softmax"])
def test_labels_that_the_head_does_not_know_are_refused(kind):
    head = MarginSoftmax(6, 4, kind)
    for labels, message in (([0, 4], r"0\.\.3, got 0\.\.4"), ([-1, 2], r"got -1\.\.2"), ([0, 1, 2], r"need \(2,\) labels, got \(3,\)")):
        with pytest.raises(ValueError, match=message):
            head(torch.randn(2, 6), torch.tensor(labels))
