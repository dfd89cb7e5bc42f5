import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.nn import functional as F

from projects.rco.losses import (
    attention_loss,
    contrast_loss,
    cross_entropy,
    decoupled_divergences,
    dist_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    kl_divergence,
    mimic_loss,
    pearson,
    pooled_to_equal,
    soft_cross_entropy,
    squared_distance,
)

LABELS = torch.tensor([0, 3, 4, 3, 1, 0])
TAUS = [1.0, 4.0]
ON_LOGITS = {
    "soft_cross_entropy": lambda s, t, y: soft_cross_entropy(s, t, 2.0).sum(),
    "kl_divergence": lambda s, t, y: kl_divergence(s, t, 2.0).sum(),
    "kd_loss": lambda s, t, y: kd_loss(s, t),
    "mimic_loss": lambda s, t, y: mimic_loss(s, t, normalise=True),
    "hint_loss": lambda s, t, y: hint_loss(s, t),
    "dkd_loss": lambda s, t, y: dkd_loss(s, t, y),
    "dist_loss": lambda s, t, y: dist_loss(s, t),
    "contrast_loss": lambda s, t, y: contrast_loss(s, t, y),
    "cross_entropy": lambda s, t, y: cross_entropy(s, y),
}


def draw(*shape, seed=0, dtype=torch.float64):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def student():
    return draw(6, 5)


@pytest.fixture
def teacher():
    return draw(6, 5, seed=1)


@pytest.mark.parametrize("tau", TAUS)
def test_congruence_and_divergence_are_scipys_entropies(student, teacher, tau):
    p, q = special.softmax(teacher.numpy() / tau, 1), special.softmax(student.numpy() / tau, 1)
    divergence, entropy = np.array([stats.entropy(p[i], q[i]) for i in range(6)]), np.array([stats.entropy(p[i]) for i in range(6)])
    np.testing.assert_allclose(kl_divergence(student, teacher, tau), divergence, rtol=1e-12)
    np.testing.assert_allclose(soft_cross_entropy(student, teacher, tau), divergence + entropy, rtol=1e-12)
    assert kl_divergence(teacher, teacher, tau).abs().max() == 0
    assert abs(kl_divergence(student, teacher, tau) - kl_divergence(teacher, student, tau)).max() > 0.01, "the direction matters"


@pytest.mark.parametrize("tau", TAUS)
def test_kd_is_tau_squared_times_the_mean_over_the_batch_not_over_elements(student, teacher, tau):
    expected = F.kl_div((student / tau).log_softmax(1), (teacher / tau).log_softmax(1), reduction="batchmean", log_target=True) * tau**2
    torch.testing.assert_close(kd_loss(student, teacher, tau), expected, rtol=1e-12, atol=0)


def test_kd_gradient_at_a_high_temperature_is_that_of_centred_logits(student, teacher):
    student.requires_grad_()
    kd_loss(student, teacher, 1e4).backward()
    centred = student.detach() - student.detach().mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)
    torch.testing.assert_close(student.grad, centred / (5 * 6), rtol=2e-3, atol=1e-5)  # Hinton et al. 2015, equation 4


def test_cross_entropy_leaves_unlabelled_samples_out(student):
    labels = torch.tensor([0, -1, 4, -1, 1, 0])
    expected = np.mean([-math.log(special.softmax(student[i].numpy())[labels[i]]) for i in (0, 2, 4, 5)])
    assert cross_entropy(student, labels).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(cross_entropy(student, LABELS), F.cross_entropy(student, LABELS))
    assert cross_entropy(student, torch.full((6,), -1)) == 0


def test_squared_distances_by_loops():
    first, second = draw(2, 3, 2, 2), draw(2, 3, 2, 2, seed=1)
    flat = first.flatten(1).numpy(), second.flatten(1).numpy()
    expected = np.array([sum((a - b) ** 2 for a, b in zip(flat[0][i], flat[1][i], strict=True)) / 12 for i in range(2)])
    np.testing.assert_allclose(squared_distance(first, second), expected, rtol=1e-12)
    assert hint_loss(first, second).item() == pytest.approx(expected.mean() / 2, rel=1e-12)
    assert hint_loss(first, second).item() == pytest.approx(np.linalg.norm(flat[0] - flat[1]) ** 2 / (2 * 24), rel=1e-12), "n is all elements"
    assert mimic_loss(first, second).item() == pytest.approx(F.mse_loss(first, second).item(), rel=1e-12)


def test_normalised_distance_depends_on_the_angle_alone(student, teacher):
    expected = (2 - 2 * F.cosine_similarity(student, teacher)) / 5
    torch.testing.assert_close(squared_distance(7 * student, teacher, normalise=True), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("compare", [kd_loss, soft_cross_entropy, squared_distance, dist_loss], ids=lambda function: function.__name__)
def test_other_shapes_are_refused_rather_than_broadcast(student, compare):
    with pytest.raises(ValueError, match=r"have shapes \(6, 5\) and \(6, 1\)"):
        compare(student, draw(6, 1))


@pytest.mark.parametrize("tau", TAUS)
def test_dkd_by_loops(student, teacher, tau):
    expected = 0.0
    for i, y in enumerate(LABELS.tolist()):
        p, q = special.softmax(teacher[i].numpy() / tau), special.softmax(student[i].numpy() / tau)
        target = stats.entropy([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        rest = stats.entropy(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        expected += tau**2 * (0.7 * target + 3.0 * rest) / 6
    assert dkd_loss(student, teacher, LABELS, 0.7, 3.0, tau).item() == pytest.approx(expected, rel=1e-10)


def test_the_decoupled_parts_add_up_to_the_divergence(student, teacher):
    target, rest = decoupled_divergences(student, teacher, LABELS, 2.0)
    p_target = (teacher / 2).softmax(1)[torch.arange(6), LABELS]
    torch.testing.assert_close(target + (1 - p_target) * rest, kl_divergence(student, teacher, 2.0), rtol=1e-10, atol=1e-12)


def test_of_two_classes_dkd_has_nothing_beyond_the_target():
    student, teacher, labels = draw(6, 2), draw(6, 2, seed=1), torch.tensor([0, 1, 1, 0, 0, 1])
    target, rest = decoupled_divergences(student.requires_grad_(), teacher, labels)
    torch.testing.assert_close(target, kl_divergence(student, teacher, 4.0))
    assert rest.abs().max() == 0
    dkd_loss(student, teacher, labels).backward()
    assert student.grad.isfinite().all()


def test_dkd_leaves_unlabelled_samples_out(student, teacher):
    labels = torch.tensor([0, 3, -1, -1, 1, 0])
    known = labels >= 0
    torch.testing.assert_close(dkd_loss(student, teacher, labels), dkd_loss(student[known], teacher[known], labels[known]))
    assert dkd_loss(student, teacher, torch.full((6,), -1)) == 0


def test_dist_is_numpys_correlation_of_rows_and_columns(student, teacher):
    p, q = special.softmax(teacher.numpy() / 4, 1), special.softmax(student.numpy() / 4, 1)
    rows = 1 - np.mean([np.corrcoef(p[i], q[i])[0, 1] for i in range(6)])
    columns = 1 - np.mean([np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(5)])
    assert dist_loss(student, teacher, 2.0, 3.0, 4.0).item() == pytest.approx(16 * (2 * rows + 3 * columns), rel=1e-10)
    assert dist_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def test_constant_rows_correlate_with_nothing_and_have_no_gradient():
    rounded = torch.full((5,), 0.2) + torch.tensor([0, 0, 1.5e-8, 0, 0])  # one unit in the last place away from constant
    rows = torch.stack([rounded, torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])]).requires_grad_()
    assert rounded.unique().numel() == 2
    found = pearson(rows, torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15], [0.3, 0.2, 0.1, 0.2, 0.2]]))
    found.sum().backward()
    assert found[0] == 0
    assert found[1] < -0.5
    assert (rows.grad[0] == 0).all()
    assert rows.grad.isfinite().all()
    assert rows.grad[1].abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 4), (6, 4)], ids=["equal", "student_smaller", "student_taller"])
def test_attention_by_hand(height, width):
    student, teacher = draw(2, 3, height, width), draw(2, 5, 4, 4, seed=1)
    smaller = min(height, 4)
    maps = []
    for features in (F.adaptive_avg_pool2d(student, (smaller, 4)).numpy(), F.adaptive_avg_pool2d(teacher, (smaller, 4)).numpy()):
        attention = (features**2).mean(1).reshape(2, -1)
        maps.append(attention / np.linalg.norm(attention, axis=1, keepdims=True))
    assert attention_loss(student, teacher).item() == pytest.approx(np.mean((maps[0] - maps[1]) ** 2), rel=1e-10)
    assert attention_loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-20), "scale does not matter"


def test_a_layer_of_zeros_has_no_attention_and_no_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss(student, draw(2, 5, 4, 4, dtype=torch.float32)).backward()
    assert (student.grad == 0).all()


def test_pooling_meets_at_the_smaller_side_each_way():
    first, second = pooled_to_equal(draw(1, 2, 8, 3), draw(1, 4, 4, 6))
    assert first.shape == (1, 2, 4, 3)
    assert second.shape == (1, 4, 4, 3)


def test_contrast_by_loops(student, teacher):
    a, b = student.numpy(), teacher.numpy()
    cosine = np.array([[a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) for j in range(6)] for i in range(6)]) / 0.5
    expected = 0.0
    for i in range(6):
        others = [j for j in range(6) if LABELS[j] != LABELS[i]]
        for similarity in (cosine[i], cosine[:, i]):
            expected += special.logsumexp(similarity[[i, *others]]) - similarity[i]
    assert contrast_loss(student, teacher, LABELS, 0.5).item() == pytest.approx(expected / 12, rel=1e-10)


def test_contrast_without_labels_takes_all_others_as_negatives(student, teacher):
    unknown = torch.full((6,), -1)
    torch.testing.assert_close(contrast_loss(student, teacher, unknown), contrast_loss(student, teacher, torch.arange(6)))
    assert contrast_loss(student, teacher, torch.zeros(6, dtype=torch.int64)) == 0, "no negatives"


@pytest.mark.parametrize("name", ON_LOGITS)
def test_gradients_are_those_of_finite_differences(name, student, teacher):
    assert torch.autograd.gradcheck(lambda s: ON_LOGITS[name](s, teacher, LABELS), student.requires_grad_())


def test_attention_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda s: attention_loss(s, draw(2, 2, 2, 2, seed=1)), draw(2, 3, 3, 3).requires_grad_())


@pytest.mark.parametrize("name", ON_LOGITS)
def test_half_precision_is_computed_in_float32(name, student, teacher):
    halves = student.bfloat16(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = ON_LOGITS[name](*halves, LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), ON_LOGITS[name](halves[0].double(), halves[1].double(), LABELS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize(("batch", "classes"), [(6, 5), (6, 2), (1, 5), (1, 2)])
def test_extreme_logits_and_small_batches_stay_finite(name, batch, classes):
    student = (1e4 * draw(batch, classes, dtype=torch.float32).sign()).requires_grad_()
    teacher = 1e4 * draw(batch, classes, seed=1, dtype=torch.float32).sign()
    loss = ON_LOGITS[name](student, teacher, LABELS[:batch] % classes)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
