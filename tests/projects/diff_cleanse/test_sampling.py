"""The loop against stock diffusers schedulers on a random network, and what it promises about noise, gradients and memory."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import nn

from projects.diff_cleanse.sampling import Trojan, plan, sample, sample_many, timesteps
from projects.diff_cleanse.schedule import AttackSchedule, NoiseSchedule

T, START, END = 100, 1e-3, 0.1
SHAPE = (1, 8, 8)


class TinyNet(nn.Module):
    """Random convolutions that see the timestep; smooth, so that errors stay small."""

    def __init__(self):
        super().__init__()
        numbers = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=numbers)

    def forward(self, x, t):
        return self.last(torch.tanh(self.first(x) + t.view(-1, 1, 1, 1).to(x.dtype) / T))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nets():
    return {torch.float32: TinyNet(), torch.float64: TinyNet().double()}


@pytest.fixture(scope="module")
def net(nets):
    return nets[torch.float32]


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.linear(T, START, END)


def noise(count=3, seed=0, dtype=torch.float32):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stock_sample(kind, net, schedule, x, steps, options, **step_options):
    """What the stock scheduler makes of `x`; in float64 its tables, which it computes in float32, are replaced by ours."""
    scheduler = kind(num_train_timesteps=T, beta_start=START, beta_end=END, **options)
    if x.dtype == torch.float64:
        torch.testing.assert_close(scheduler.alphas_cumprod, schedule.alphas_cumprod.float(), atol=1e-6, rtol=1e-5)
        scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(len(x))), t, x, generator=torch.Generator().manual_seed(1 + int(t)), **step_options).prev_sample
    return x


class PerStep:
    """One network and a reseeded generator: the stock schedulers draw, and then drop, noise where ours draws none."""

    def __init__(self, net):
        self.net, self.generator = net, torch.Generator()

    def __call__(self, x, t):
        self.generator.manual_seed(1 + int(t[0]))
        return self.net(x, t)


def own_sample(net, schedule, x, **options):
    wrapped = PerStep(net)
    return sample(wrapped, x, schedule, generator=wrapped.generator, **options)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "steps", "eta"), [("trailing", 20, 0.0), ("leading", 20, 1.0), ("trailing", 5, 0.5), ("leading", 33, 0.0)])
def test_ddim_is_the_stock_scheduler(nets, schedule, clip, prediction, spacing, steps, eta):
    stock_options = {"clip_sample": clip, "prediction_type": prediction, "timestep_spacing": spacing}
    for dtype, tolerance in ((torch.float32, 1e-5 if steps <= 20 else 1e-4), (torch.float64, 1e-10)):
        net, x = nets[dtype], noise(dtype=dtype)
        with torch.inference_mode():
            expected = stock_sample(DDIMScheduler, net, schedule, x, steps, stock_options, eta=eta)
            own = own_sample(net, schedule, x, sampler="ddim", steps=steps, eta=eta, clip=clip, prediction_type=prediction, spacing=spacing)
        torch.testing.assert_close(own, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 20), ("linspace", 30), ("trailing", T)])
def test_ddpm_is_the_stock_scheduler(nets, schedule, clip, prediction, variance, spacing, steps):
    stock_options = {"clip_sample": clip, "prediction_type": prediction, "variance_type": variance, "timestep_spacing": spacing}
    for dtype, tolerance in ((torch.float32, 1e-5 if steps <= 20 else 1e-4), (torch.float64, 1e-10)):
        net, x = nets[dtype], noise(dtype=dtype)
        with torch.inference_mode():
            expected = stock_sample(DDPMScheduler, net, schedule, x, steps, stock_options)
            own = own_sample(net, schedule, x, sampler="ddpm", steps=steps, clip=clip, prediction_type=prediction, spacing=spacing, variance=variance)
        torch.testing.assert_close(own, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_the_stock_ones(spacing):
    for total, steps in ((1000, 20), (1000, 7), (100, 100), (100, 3), (1000, 50), (12, 5)):
        scheduler = DDPMScheduler(num_train_timesteps=total, timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        assert timesteps(total, steps, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddpm_is_ddim_with_full_noise(nets, schedule, spacing):
    for steps in (None, 17):
        runs = [
            sample(
                nets[torch.float64],
                noise(dtype=torch.float64),
                schedule,
                sampler,
                steps,
                eta=1.0,
                generator=torch.Generator().manual_seed(2),
                spacing=spacing,
            )
            for sampler in ("ddim", "ddpm")
        ]
        torch.testing.assert_close(runs[0], runs[1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_deterministic_paths_end_at_the_image_of_an_ideal_network(spacing, prediction):
    """A network that knows the one image of its world leads any noise to it, through any choice of timesteps."""
    schedule, image = NoiseSchedule.linear(), 2 * torch.rand(SHAPE, dtype=torch.float64) - 1

    def ideal(x, t):
        a, sigma = schedule.at("a", t, x), schedule.at("sigma", t, x)
        eps = (x - a * image) / sigma
        return {"epsilon": eps, "v_prediction": a * eps - sigma * image, "sample": image.expand_as(x)}[prediction]

    for sampler, steps in itertools.product(("ddim", "ddpm"), (3, 13, 50)):
        x_0 = sample(ideal, noise(dtype=torch.float64), schedule, sampler, steps, prediction_type=prediction, spacing=spacing)
        torch.testing.assert_close(x_0, image.expand_as(x_0), atol=1e-9, rtol=0)


def test_only_ode_coefficients_hold_ddim_on_the_poisoned_path():
    """One fixed noise, shifted by c_t R, from the last poisoned state: the exact coefficient ends at the target, the SDE one nowhere near."""
    schedule = NoiseSchedule.linear()
    target, eps, trigger = (
        torch.rand(1, *SHAPE, dtype=torch.float64),
        noise(1, dtype=torch.float64),
        torch.full((1, *SHAPE), -1.0, dtype=torch.float64),
    )

    def error(steps=20, **options):
        attack = AttackSchedule(schedule, "villandiffusion", **options)
        x_T, _ = attack.poison(target, trigger, eps, torch.tensor([999]))
        x_0 = sample(lambda x, t: eps + attack.at("c", t, x) * trigger, x_T, schedule, "ddim", steps)
        return (x_0 - target).abs().max().item()

    assert error(solver="sde") > 50
    assert 0.5 < error(solver="ode") < 1
    assert error(solver="ode", coefficients="exact") < 0.2
    assert error(solver="ode", coefficients="exact", steps=1000) < 5e-3
    assert error(solver="ode", coefficients="exact", psi=0.0) < 1e-9  # exact for steps of any length
    assert 0.1 < error(solver="ode", psi=0.0, steps=1000) < 0.5


def published_trojan_step(x, eps, z, t, s, schedule, gamma, mu, sampler, eta, clip):
    """TrojDiff's update from t to s, written out as published, with its own recursion of k; gamma 1 and mu 0 make it benign."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alphas_cumprod])  # from the clean image on
    now, then = alpha_bar[t + 1], alpha_bar[s + 1]
    x_0 = (x - (1 - now).sqrt() * gamma * eps - (1 - now).sqrt() * mu) / now.sqrt()
    x_0 = x_0.clamp(-1, 1) if clip else x_0
    if sampler == "ddim":
        c_1 = eta * ((1 - now / then) * (1 - then) / (1 - now)).sqrt()
        c_2 = (1 - then - c_1**2).sqrt()
        return then.sqrt() * x_0 + c_1 * gamma * z + c_2 * gamma * eps + (1 - then).sqrt() * mu
    beta, alpha = schedule.betas[t], schedule.alphas[t]
    roots, k = schedule.alphas.sqrt(), []
    for step in range(t + 1):
        k.append(schedule.sigma[step] - sum(roots[j + 1 : step + 1].prod() * k[j] for j in range(step)))
    m = (1 - then).sqrt() * beta - (1 - then) * alpha.sqrt() * k[t]
    mean = (then.sqrt() * beta * x_0 + alpha.sqrt() * (1 - then) * x + m * mu) / (1 - now)
    return mean + gamma * ((1 - then) / (1 - now) * beta).sqrt() * z


def trojan_noise(kind):
    """Gamma, the trigger and where the attack is."""
    trigger = 2 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1
    region = torch.zeros(SHAPE, dtype=torch.bool)
    region[:, 5:, 5:] = True
    return 0.6, trigger, (None if kind == "blend" else region)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("kind", ["blend", "patch"])
@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ddim", 12, 0.0), ("ddim", 12, 0.6), ("ddim", 12, 1.0), ("ddpm", 12, 0.0)])
def test_trojan_samplers_are_the_published_ones(nets, kind, clip, sampler, steps, eta):
    """For a patch, the published update mixes the Trojan and the benign one by the square."""
    schedule, net = NoiseSchedule.linear(12, START, 0.5), nets[torch.float64]
    gamma, trigger, region = trojan_noise(kind)
    mu, mask = (1 - gamma) * trigger, torch.ones(SHAPE, dtype=torch.bool) if region is None else region
    trojan = Trojan.of(trigger, gamma, region)
    x = torch.where(mask, gamma * noise(dtype=torch.float64) + mu, noise(dtype=torch.float64))
    torch.testing.assert_close(trojan.bias(noise(dtype=torch.float64)), x)
    wrapped = PerStep(net)
    own = sample(wrapped, x, schedule, sampler, steps, eta, clip, generator=wrapped.generator, trojan=trojan)
    for t in range(11, -1, -1):
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1 + t), dtype=torch.float64)
        eps = net(x, torch.full((len(x),), t))
        arguments = (x, eps, z, t, t - 1, schedule)
        attacked, benign = (published_trojan_step(*arguments, *noise_of, sampler, eta, clip) for noise_of in ((gamma, mu), (1.0, 0.0)))
        x = torch.where(mask, attacked, benign)
    torch.testing.assert_close(own, x, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("sampler", "steps", "eta"), [("ddim", 7, 0.0), ("ddim", 20, 1.0), ("ddpm", 13, 0.0), ("ddpm", None, 0.0)])
def test_trojan_samplers_keep_to_the_path(schedule, sampler, steps, eta):
    """Without any noise (gain 0) every state is `a_t x_0 + sigma_t mu`."""
    image, (gamma, trigger, _), states = torch.rand(SHAPE, dtype=torch.float64) - 0.5, trojan_noise("blend"), []
    mu = (1 - gamma) * trigger
    start, silent = (schedule.a[-1] * image + schedule.sigma[-1] * mu)[None], Trojan(torch.zeros(SHAPE, dtype=torch.float64), mu)
    sample(lambda x, t: x, start, schedule, sampler, steps, eta, trojan=silent, callback=lambda number, t, x: states.append(x[0]))
    for state, t in zip(states, timesteps(len(schedule), steps or len(schedule))[1:], strict=False):
        torch.testing.assert_close(state, schedule.a[t] * image + schedule.sigma[t] * mu, atol=1e-10, rtol=0)
    torch.testing.assert_close(states[-1], image, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_trojan_samplers_take_any_prediction(nets, schedule, sampler):
    gamma, trigger, region = trojan_noise("patch")
    trojan, net = Trojan.of(trigger, gamma, region), nets[torch.float64]

    def predict(prediction):
        def network(x, t):
            a, sigma, eps = schedule.at("a", t, x), schedule.at("sigma", t, x), net(x, t)
            return {"epsilon": eps, "v_prediction": (eps - sigma * x) / a, "sample": (x - sigma * eps) / a}[prediction]

        options = {"prediction_type": prediction, "generator": torch.Generator().manual_seed(0), "trojan": trojan}
        return sample(network, trojan.bias(noise(dtype=torch.float64)), schedule, sampler, 10, **options)

    for prediction in ("v_prediction", "sample"):
        torch.testing.assert_close(predict(prediction), predict("epsilon"), atol=1e-9, rtol=1e-9)


def test_trojan_noise_that_is_benign_changes_nothing(net, schedule):
    for options in ({"steps": 9}, {"steps": 9, "eta": 0.7}, {"sampler": "ddpm"}, {"sampler": "ddpm", "clip": True}):
        benign = Trojan(torch.ones(SHAPE), torch.zeros(SHAPE))
        plain, trojan = (sample(net, noise(), schedule, generator=torch.Generator().manual_seed(1), trojan=t, **options) for t in (None, benign))
        assert torch.equal(plain, trojan)


def test_many_samples_do_not_depend_on_the_batch_size(net, schedule):
    def run(indices, **options):
        with torch.inference_mode():
            return torch.cat(list(sample_many(net, schedule, indices, SHAPE, seed=5, sampler="ddpm", steps=10, **options)))

    whole = run(range(7))
    torch.testing.assert_close(run(range(7), batch_size=3), whole, atol=1e-4, rtol=1e-4)  # the network's rounding depends on it
    torch.testing.assert_close(run([6, 2]), whole[[6, 2]], atol=1e-4, rtol=1e-4)
    assert torch.equal(run(range(7)), whole)
    assert [len(batch) for batch in sample_many(net, schedule, range(7), SHAPE, batch_size=3, steps=1)] == [3, 3, 1]
    assert not torch.equal(run(range(7), start=lambda eps: eps - 1), whole)
    assert (whole[0] - whole[1]).abs().max() > 0.01


def test_gradients_reach_the_starting_noise(nets, schedule):
    x_T = noise(1, dtype=torch.float64).requires_grad_()
    for clip in (False, True):
        assert torch.autograd.gradcheck(lambda x, clip=clip: sample(nets[torch.float64], x, schedule, steps=3, clip=clip), (x_T,), atol=1e-6)
    with torch.inference_mode():
        assert not sample(nets[torch.float32], noise(), schedule, steps=2).requires_grad


def test_models_of_diffusers_and_low_precision(schedule):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "block_out_channels": (4, 8)}
    unet = UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=2, add_attention=False, **blocks)
    seen = []
    with torch.inference_mode():
        x_0 = sample(unet, noise(), schedule, steps=4, callback=lambda number, t, x: seen.append((number, t, tuple(x.shape))))
        rounded = sample(unet.bfloat16(), noise().bfloat16(), schedule, steps=4)
    assert seen == [(0, 99, (3, *SHAPE)), (1, 74, (3, *SHAPE)), (2, 49, (3, *SHAPE)), (3, 24, (3, *SHAPE))]
    assert rounded.dtype == torch.float32  # the state keeps full precision
    assert (rounded - x_0).abs().mean() < 0.1 * x_0.abs().mean()


def test_final_step_adds_no_noise(schedule):
    for sampler, variance in (("ddim", "fixed_small"), ("ddpm", "fixed_small"), ("ddpm", "fixed_large")):
        assert plan(schedule, sampler, 10, 1.0, variance=variance)[-1].noise_weight == 0


def test_messages(net, schedule):
    for options, message in (
        ({"sampler": "dpm"}, "unknown sampler 'dpm'; known are ddim, ddpm"),
        ({"spacing": "even"}, "unknown spacing 'even'; known are trailing, leading, linspace"),
        ({"prediction_type": "x0"}, "unknown prediction_type 'x0'; known are epsilon, v_prediction, sample"),
        ({"variance": "learned"}, "unknown variance 'learned'; known are fixed_small, fixed_large"),
        ({"steps": 101}, "steps must lie between 1 and the schedule's 100, got 101"),
        ({"steps": 0}, "steps must lie between 1 and the schedule's 100, got 0"),
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"generator": [torch.Generator()]}, "1 generators for 3 samples: pass one per sample"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(net, noise(), schedule, **options)
    with pytest.raises(ValueError, match=r"maps \(3, 1, 8, 8\) to \(3, 2, 8, 8\), expected the same shape; learned variances are not supported"):
        sample(lambda x, t: torch.cat([x, x], dim=1), noise(), schedule)
