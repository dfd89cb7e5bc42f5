"""The coefficients against the published numbers, the recursions they stand for, and the paths they are meant to hold."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler

from projects.diff_cleanse.schedule import AttackSchedule, NoiseSchedule


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.linear()


def batch(dtype=torch.float64, size=6):
    numbers = torch.Generator().manual_seed(0)
    images, residual, eps = (torch.randn(size, 3, 4, 4, generator=numbers, dtype=torch.float64).to(dtype) for _ in range(3))
    return images, residual, eps, torch.tensor([0, 1, 10, 500, 998, 999])[:size]


def test_published_numbers(schedule):
    bad = AttackSchedule(schedule, "baddiffusion")
    villan = AttackSchedule(schedule, "villandiffusion")
    assert bad.c[[0, 500, 999]].tolist() == pytest.approx([0.005000, 0.481371, 0.502515], abs=5e-7)
    assert schedule.a[-1].item() == pytest.approx(0.006353, abs=5e-7)
    assert schedule.sigma[-1].item() == pytest.approx(0.99998, abs=5e-6)
    assert bad.k[[0, 1, 999]].tolist() == pytest.approx([0.01, 0.004830, 0.010051], abs=5e-7)
    assert bad.m[[0, 500, 999]].tolist() == pytest.approx([0.0, 0.0048415, 0.0100503], abs=5e-8)
    ratio = villan.c / villan.sigma
    assert ratio.min().item() == pytest.approx(1.00003, abs=5e-6)
    assert ratio.max().item() == pytest.approx(1.0051, abs=5e-5)
    assert NoiseSchedule.linear(100, 1e-3, 0.1).a[-1].item() == pytest.approx(0.0732, abs=5e-5)


@pytest.mark.parametrize("psi", [1.0, 0.4, 0.0])
def test_exact_sde_target_keeps_the_ancestral_mean_on_the_poisoned_path(schedule, psi):
    attack = AttackSchedule(schedule, "villandiffusion", psi=psi, solver="sde", coefficients="exact")
    mean = (attack.rho - attack.betas * attack.c / attack.sigma) / attack.alphas.sqrt()  # R's share in (x_t - beta eps / sigma) / sqrt(alpha)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), attack.rho[:-1]])
    torch.testing.assert_close(mean, before, atol=1e-12, rtol=0)


def test_exact_and_reference_agree_for_psi_one(schedule):
    def c(**options):
        return AttackSchedule(schedule, "villandiffusion", **options).c

    torch.testing.assert_close(c(solver="sde", coefficients="exact"), c(solver="sde"), atol=1e-15, rtol=0)
    torch.testing.assert_close(c(coefficients="exact"), schedule.sigma, atol=0, rtol=0)
    torch.testing.assert_close(c(), 2 * c(solver="sde"), atol=1e-15, rtol=0)


@pytest.mark.parametrize("psi", [1.0, 0.3, 0.0])
def test_exact_ode_target_is_the_limit_of_one_ddim_step(schedule, psi):
    attack = AttackSchedule(schedule, "villandiffusion", psi=psi, solver="ode", coefficients="exact")
    a, sigma, rho = attack.a, attack.sigma, attack.rho
    one_step = (a[1:] * rho[:-1] - a[:-1] * rho[1:]) / (a[1:] * sigma[:-1] - a[:-1] * sigma[1:])  # holds DDIM from t to t - 1 on the path
    torch.testing.assert_close(one_step[50:], attack.c[51:], atol=3e-3, rtol=0)  # steps are short there
    if psi == 1:
        torch.testing.assert_close(one_step, (a[1:] - a[:-1]) / (a[1:] * sigma[:-1] - a[:-1] * sigma[1:]), atol=1e-12, rtol=0)
        torch.testing.assert_close(one_step, (sigma[1:] + sigma[:-1]) / 2, atol=2e-6, rtol=0)


def test_shift_recursion_of_trojdiff_sums_to_sigma():
    schedule = NoiseSchedule.linear(60, 1e-4, 0.3)
    roots, k = schedule.alphas.sqrt(), []
    for t in range(len(schedule)):  # sigma_t = k_t + sqrt(alpha_t) k_{t-1} + sqrt(alpha_t alpha_{t-1}) k_{t-2} + ...
        k.append(schedule.sigma[t] - sum(roots[j + 1 : t + 1].prod() * k[j] for j in range(t)))
    torch.testing.assert_close(AttackSchedule(schedule).k, torch.stack(k), atol=1e-14, rtol=0)


def test_trojdiff_step_shift_keeps_the_ancestral_mean_on_the_path(schedule):
    attack = AttackSchedule(schedule, "trojdiff", gamma=0.6)
    share = attack.rho / 0.4  # sigma_t: R's share of x_t in units of mu
    root = attack.alphas.sqrt()
    before = attack.previous("sigma")
    torch.testing.assert_close((root * before**2 * share + attack.m) / attack.sigma**2, before, atol=1e-12, rtol=0)
    torch.testing.assert_close(root[1:] * share[:-1] + attack.k[1:], share[1:], atol=1e-14, rtol=0)


def test_poisoned_input_and_target_are_the_equations(schedule):
    images, residual, eps, t = batch()
    for attack, gamma in (("none", 1.0), ("baddiffusion", 1.0), ("villandiffusion", 1.0), ("trojdiff", 0.3)):
        own = AttackSchedule(schedule, attack, gamma=0.3)
        x_t, regression = own.poison(images, residual, eps, t)
        for i, step in enumerate(t.tolist()):
            a, sigma = schedule.alphas_cumprod[step].sqrt(), (1 - schedule.alphas_cumprod[step]).sqrt()
            rho = {"none": 0.0, "trojdiff": (1 - 0.3) * sigma}.get(attack, 1 - a)
            torch.testing.assert_close(x_t[i], a * images[i] + rho * residual[i] + gamma * sigma * eps[i])
            torch.testing.assert_close(regression[i], eps[i] + own.c[step] * residual[i])
        assert (attack in ("none", "trojdiff")) == torch.equal(regression, eps)


def test_villan_with_psi_one_for_sde_is_baddiffusion(schedule):
    villan, bad = AttackSchedule(schedule, "villandiffusion", psi=1.0, solver="sde"), AttackSchedule(schedule, "baddiffusion")
    assert torch.equal(villan.c, bad.c)
    assert torch.equal(villan.rho, bad.rho)


@pytest.mark.parametrize("attack", ["none", "baddiffusion", "villandiffusion", "trojdiff"])
def test_clean_samples_are_plain_ddpm(schedule, attack):
    images, residual, eps, t = batch(torch.float32)
    own = AttackSchedule(schedule, attack)
    expected = DDPMScheduler(num_train_timesteps=1000).add_noise(images, eps, t)
    torch.testing.assert_close(own.add_noise(images, eps, t), expected, atol=1e-5, rtol=0)
    poisoned = torch.tensor([True, False, True, False, False, False])
    x_t, regression = own.poison(images, residual, eps, t, is_poisoned=poisoned)
    assert torch.equal(x_t[~poisoned], own.add_noise(images, eps, t)[~poisoned])
    assert torch.equal(regression[~poisoned], eps[~poisoned])
    if attack != "trojdiff":
        x_t, regression = own.poison(images, torch.zeros_like(residual), eps, t)
        torch.testing.assert_close(x_t, expected, atol=1e-5, rtol=0)
        assert torch.equal(regression, eps)


def test_patch_attack_stays_in_its_square(schedule):
    images, residual, eps, t = batch()
    square = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    square[..., -2:, -2:] = True
    own = AttackSchedule(schedule, "trojdiff", gamma=0.1)
    x_t, _ = own.poison(images, residual, eps, t, is_poisoned=square)
    assert torch.equal(x_t[..., :2, :], own.add_noise(images, eps, t)[..., :2, :])
    assert torch.equal(x_t[..., -2:, -2:], own.poison(images, residual, eps, t)[0][..., -2:, -2:])


def test_half_precision_images_meet_full_precision_coefficients(schedule):
    own = AttackSchedule(schedule, "villandiffusion")
    images, residual, eps, t = batch()
    x_t, regression = own.poison(images, residual, eps, t)
    rounded_x, rounded_regression = own.poison(*(part.half() for part in (images, residual, eps)), t)
    assert rounded_x.dtype == rounded_regression.dtype == torch.float16
    assert own.at("sigma", t, images.half()).dtype == torch.float32
    torch.testing.assert_close(rounded_x.double(), x_t, atol=4e-3, rtol=2e-3)
    torch.testing.assert_close(rounded_regression.double(), regression, atol=4e-3, rtol=2e-3)
    assert own.sigma.dtype == torch.float64


def test_tables_first_used_while_sampling_serve_training(schedule):
    own = copy.deepcopy(AttackSchedule(schedule, "baddiffusion"))
    images, residual, eps, t = batch(torch.float32)
    with torch.inference_mode():
        own.poison(images, residual, eps, t)
    leaf = residual.clone().requires_grad_()
    own.poison(images, leaf, eps, t)[0].sum().backward()
    torch.testing.assert_close(leaf.grad, (1 - own.a)[t].float().view(-1, 1, 1, 1).expand_as(leaf))


def test_starting_noise(schedule):
    eps, trigger = torch.randn(2, 1, 4, 4), torch.full((1, 4, 4), -1.0)
    short, last = NoiseSchedule.linear(100, 1e-3, 0.1), (1 - torch.linspace(1e-3, 0.1, 100)).prod()
    for attack in ("none", "baddiffusion", "villandiffusion"):
        own = AttackSchedule(short, attack)
        torch.testing.assert_close(own.starting_noise(eps, trigger), eps + trigger)
        torch.testing.assert_close(own.starting_noise(eps, trigger, "exact"), eps - (1 - last.sqrt()))
    troj = AttackSchedule(schedule, "trojdiff", gamma=0.6)
    torch.testing.assert_close(troj.starting_noise(eps, trigger), 0.6 * eps - 0.4)
    torch.testing.assert_close(troj.starting_noise(eps, trigger, "exact"), 0.6 * eps - 0.4 * schedule.sigma[-1].float())
    with pytest.raises(ValueError, match="unknown amplitude 'full'; known are reference, exact"):
        troj.starting_noise(eps, trigger, "full")


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_timesteps": 50},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"beta_schedule": "sigmoid", "beta_start": 1e-3, "beta_end": 0.1, "num_train_timesteps": 50},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_scheduler_configs_are_read_as_diffusers_reads_them(options):
    stock = DDPMScheduler(**options)
    own = NoiseSchedule.from_scheduler_config(dict(stock.config))
    torch.testing.assert_close(own.alphas_cumprod.float(), stock.alphas_cumprod, atol=1e-6, rtol=1e-3 if "cap" in str(options) else 1e-5)
    torch.testing.assert_close(own.betas.float(), stock.betas, atol=1e-7, rtol=1e-5)


def test_messages(schedule):
    with pytest.raises(ValueError, match="unknown beta_schedule 'exponential'; known are linear, scaled_linear, squaredcos_cap_v2"):
        NoiseSchedule.from_scheduler_config({"beta_schedule": "exponential"})
    for foreign in (ScoreSdeVeScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler):
        with pytest.raises(ValueError, match=f"{foreign.__name__} is not supported, only processes that are described by betas"):
            NoiseSchedule.from_scheduler_config(dict(foreign().config) | {"_class_name": foreign.__name__})
    with pytest.raises(ValueError, match="rescale_betas_zero_snr is not supported"):
        NoiseSchedule.from_scheduler_config({"rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match="betas must be a non-empty sequence of numbers strictly between 0 and 1"):
        NoiseSchedule([0.1, 1.0])
    with pytest.raises(ValueError, match="unknown attack 'badnets'; known are none, baddiffusion, villandiffusion, trojdiff"):
        AttackSchedule(schedule, "badnets")
    with pytest.raises(ValueError, match="unknown solver 'dpm'; known are sde, ode"):
        AttackSchedule(schedule, "villandiffusion", solver="dpm")
    with pytest.raises(ValueError, match=r"psi must lie in \[0, 1\], got 2"):
        AttackSchedule(schedule, "villandiffusion", psi=2.0)
    with pytest.raises(ValueError, match="gamma must lie strictly between 0 and 1, got 0"):
        AttackSchedule(schedule, "trojdiff", gamma=0.0)
