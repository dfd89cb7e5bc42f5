"""Both inversions: by gradient, and black-box as meant and as published."""

import numpy as np
import pytest
import torch
from helpers.planted import CONFIG, SHAPE, PlantedDenoiser, target

from projects.diff_cleanse import bbti as black_box
from projects.diff_cleanse.bbti import bbti, bbti_released, black_box_loss
from projects.diff_cleanse.inversion import PROBED, attraction, disagreement, find_anchor, frozen, invert, objective, out_of_range
from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.samplers import ScanSampler
from projects.diff_cleanse.schedule import NoiseSchedule
from projects.diff_cleanse.similarity import mscr, pixel_entropy, range_term
from shared.backbones.unets import build_unet

SCHEDULE = NoiseSchedule.from_scheduler_config(CONFIG)
ATTACKS = {0.0: "villandiffusion", 1.0: "baddiffusion"}


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_with(model, eta=0.0, steps=20, seed=0):
    sampler = ScanSampler("ddim", CONFIG, steps, eta)
    return lambda x_T: to_unit_range(sampler(model, x_T, torch.Generator().manual_seed(seed)))


# ---- by gradient


def test_disagreement_by_numpy():
    batch = images(2, 5, 3, 4, 4) * 1.4 - 0.2
    for found, one in zip(disagreement(batch), batch.numpy(), strict=True):
        assert float(found) == pytest.approx(one.var(axis=0).mean() / (one.mean(axis=0).var(axis=(1, 2)).mean() + 0.02), rel=1e-5)
    for found, one in zip(out_of_range(batch), batch.numpy(), strict=True):
        assert float(found) == pytest.approx((np.maximum(one - 1.05, 0) + np.maximum(-0.05 - one, 0)).mean(), rel=1e-4)
    assert disagreement(batch[:, :1].expand(-1, 5, -1, -1, -1)).max() < 1e-12


def test_contrast_hardly_changes_disagreement_and_cannot_win_it():
    batch = 20 * images(6, 1, 8, 8)  # the constant 0.02 keeps flat images from dividing by zero
    assert float(disagreement(batch / 2)) == pytest.approx(float(disagreement(batch)), rel=0.05)
    assert float(disagreement(batch + 3)) == pytest.approx(float(disagreement(batch)), rel=1e-4)
    plain = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1) + 0.02 * images(6, 3, 8, 8)
    torch.testing.assert_close(disagreement(plain), disagreement(plain - plain.mean(dim=(0, 2, 3)).view(3, 1, 1)))  # colour itself is no contrast


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gradients_are_those_of_finite_differences(eta):
    model = PlantedDenoiser(ATTACKS[eta]).double()
    eps = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pattern = (images(1, *SHAPE, dtype=torch.float64) - 1).requires_grad_()

    def loss(patterns, anchor=None):
        return objective(model, SCHEDULE, patterns, eps, anchor, steps=4, eta=eta, generator=torch.Generator().manual_seed(2))[0]

    assert torch.autograd.gradcheck(loss, (pattern,), eps=1e-6, atol=1e-5)
    assert torch.autograd.gradcheck(loss, (pattern, target().double()), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("probes", [0, 24])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_planted_trigger_is_found_and_a_clean_model_yields_none(eta, probes):
    eps = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(7))
    found, clean = (invert(PlantedDenoiser(attack), SCHEDULE, SHAPE, eta=eta, iterations=30, probes=probes) for attack in (ATTACKS[eta], "none"))
    draw = draw_with(PlantedDenoiser(ATTACKS[eta]), eta, 50)
    assert mscr(draw(eps + found.pattern), 0.99) >= 0.75
    assert mscr(draw(eps), 0.99) <= 0.2
    assert (draw(eps + found.pattern) - to_unit_range(target())).square().mean() < 0.02
    assert mscr(draw_with(PlantedDenoiser(), eta, 50)(eps + clean.pattern), 0.99) <= 0.2
    assert found.value < clean.value
    assert len(found.curve) == 30
    assert found.pattern.abs().max() <= 1


def test_attraction_by_numpy():
    batch, anchor = images(2, 5, 3, 4, 4), images(3, 4, 4, seed=1)
    expected = [((one.numpy() - anchor.numpy()) ** 2).mean() / (anchor.numpy().var(axis=(1, 2)).mean() + 0.02) for one in batch]
    assert attraction(batch, anchor).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_anchor_is_the_target():
    numbers = torch.Generator().manual_seed(0)
    for eta, attack in ATTACKS.items():
        found = find_anchor(PlantedDenoiser(attack), SCHEDULE, SHAPE, 16, numbers, steps=10, eta=eta)
        assert (found[0] - (target() / 2 + 0.5)).abs().mean() < 0.1
        assert found[1] in PROBED
    assert find_anchor(PlantedDenoiser(), SCHEDULE, SHAPE, 16, numbers, steps=10) is None


def test_starts_go_side_by_side_without_touching_each_other():
    model = PlantedDenoiser("villandiffusion")
    together = invert(model, SCHEDULE, SHAPE, iterations=12, starts=(-0.8, 0.9), probes=0)
    alone = [invert(model, SCHEDULE, SHAPE, iterations=12, starts=(start,), probes=0) for start in (-0.8, 0.9)]
    best = min(alone, key=lambda inverted: np.mean(inverted.curve[1:6]))
    torch.testing.assert_close(together.pattern, best.pattern, atol=1e-3, rtol=0)
    assert together.curve == pytest.approx(best.curve, rel=1e-2, abs=1e-4)


def test_inversion_repeats_itself_and_saves_memory_with_the_same_result():
    torch.manual_seed(0)
    unet = build_unet("tiny", 16, 1).eval()
    first, again, saving, other = (
        invert(unet, SCHEDULE, (1, 16, 16), iterations=3, batch=2, probes=2, **options) for options in ({}, {}, {"save_memory": True}, {"seed": 1})
    )
    assert torch.equal(first.pattern, again.pattern)
    assert first.curve == again.curve
    torch.testing.assert_close(saving.pattern, first.pattern, atol=1e-4, rtol=0)
    assert not torch.allclose(other.pattern, first.pattern, atol=1e-4)


def test_the_network_is_given_back_as_it_was():
    unet = build_unet("tiny", 16, 1).train()
    unet.conv_out.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in unet.parameters()]
    with frozen(unet) as lent:
        assert not lent.training
        assert not any(parameter.requires_grad for parameter in lent.parameters())
        assert lent.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert unet.training
    assert [parameter.requires_grad for parameter in unet.parameters()] == wanted
    assert all(tensor.is_contiguous() and torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


# ---- black-box


def test_black_box_loss_with_and_without_similar_images():
    """Written out term by term from the method's description."""
    batch = images(5, 1, 8, 8, seed=4, dtype=torch.float64) * 0.8 + 0.1
    cosine = torch.nn.functional.cosine_similarity

    def entropy_term(entropies, low, high):
        return torch.stack([(entropy - high).clamp_min(0) + (low - entropy).clamp_min(0) for entropy in entropies]).mean()

    pairs = sum(1 - cosine(batch[i].flatten(), batch[j].flatten(), dim=0) for i in range(5) for j in range(i))
    loss = black_box_loss(batch)
    assert not loss.similar.any()
    torch.testing.assert_close(loss.value, pairs + 20 * entropy_term(pixel_entropy(batch), 0.8, 6.0) + range_term(batch))

    batch[3] = batch[1]
    loss, near = black_box_loss(batch), pixel_entropy(batch[[1, 3]])
    assert loss.similar.tolist() == [False, True, False, True, False]
    rest = batch[[0, 2, 4]]
    drawn = sum(1 - cosine(batch[1].flatten(), image.flatten(), dim=0) for image in rest) * 5 / 3
    is_blob = near[0] < 0.8
    weight, low, high = (20, 0.8, 6.0) if is_blob else (10, near.min() - 0.1, near.max() + 0.1)
    torch.testing.assert_close(loss.value, drawn + weight * entropy_term(pixel_entropy(rest), low, high) + range_term(rest))
    assert float(black_box_loss(batch[:1].expand(4, -1, -1, -1)).value) == 0


def test_black_box_gradients_reach_residual_images_only():
    batch = (images(4, 1, 8, 8, seed=2, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    with torch.no_grad():
        batch[2] = batch[0]
    [gradient] = torch.autograd.grad(black_box_loss(batch).value, [batch])
    assert gradient[[1, 3]].abs().sum() > 0
    assert gradient[2].abs().sum() == 0


def positions(run, model, **options):
    """Run an inversion and collect the patterns that were put on the noise."""
    seen = []
    eps = torch.randn(4, *SHAPE, generator=black_box.generator(0, "bbti"))

    def draw(x_T):
        seen.append((x_T - eps)[0])
        return draw_with(model, steps=5)(x_T)

    inverted = run(draw, SHAPE, batch=4, iterations=5, **options)
    return inverted, torch.stack(seen)


def test_the_pattern_moves_and_the_released_one_does_not():
    model = PlantedDenoiser()
    _, moving = positions(bbti, model, starts=("normal",))
    released, standing = positions(bbti_released, model)
    assert (moving[1:] - moving[:-1]).abs().amax(dim=(1, 2, 3)).min() > 0.05  # Adam at 0.1
    assert len(standing) == 5
    assert torch.allclose(standing, standing[:1].expand_as(standing), atol=1e-6)
    torch.testing.assert_close(released.pattern, standing[0], atol=1e-6, rtol=0)
    numbers = black_box.generator(0, "bbti")
    torch.randn(4, *SHAPE, generator=numbers)  # the noises come first
    torch.testing.assert_close(released.pattern, 1 - 2 * torch.randn(SHAPE, generator=numbers), atol=0.5 / 255 + 1e-6, rtol=0)


def test_black_box_finds_a_planted_trigger_and_keeps_the_best():
    model = PlantedDenoiser("villandiffusion")
    found = bbti(draw_with(model), SHAPE, iterations=10, threshold=0.99)
    assert found.value == min(found.curve) < -0.5
    eps = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(7))
    assert mscr(draw_with(model)(eps + found.pattern), 0.99) > 0.5
    torch.testing.assert_close(255 * found.pattern, (255 * found.pattern).round(), atol=1e-3, rtol=0)
    clean = bbti(draw_with(PlantedDenoiser()), SHAPE, iterations=4, threshold=0.99)
    assert mscr(draw_with(PlantedDenoiser())(eps + clean.pattern), 0.99) <= 0.25


def test_starts_are_what_they_are_called():
    numbers = torch.Generator().manual_seed(0)
    make = black_box._start
    assert make(-0.5, SHAPE, numbers, "cpu").unique().tolist() == [-0.5]
    uniform, normal = (make(name, (1, 64, 64), numbers, "cpu") for name in ("uniform", "normal"))
    assert -1 <= uniform.min() < -0.99
    assert -0.01 < uniform.max() <= 0
    assert abs(float(normal.mean())) < 0.06
    assert abs(float(normal.std()) - 1) < 0.05


def test_messages():
    with pytest.raises(ValueError, match=r"an inversion needs a start and an iteration, got starts=\[\] and iterations=45"):
        invert(PlantedDenoiser(), SCHEDULE, SHAPE, starts=())
    with pytest.raises(ValueError, match=r"an inversion needs a start and an iteration, got .* iterations=0"):
        invert(PlantedDenoiser(), SCHEDULE, SHAPE, iterations=0)
    with pytest.raises(ValueError, match="BBTI needs a start and an iteration"):
        bbti(draw_with(PlantedDenoiser()), SHAPE, starts=())
    with pytest.raises(ValueError, match="unknown start 'zeros'; give a number, uniform or normal"):
        bbti(draw_with(PlantedDenoiser()), SHAPE, starts=("zeros",))
