"""The scanning samplers against stock pipelines and schedulers of diffusers, and what they promise about settings."""

import diffusers
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, PNDMPipeline, PNDMScheduler
from helpers.planted import CONFIG, PlantedDenoiser, target, trigger

from projects.diff_cleanse.samplers import SAMPLERS, ScanSampler, prediction_of
from projects.diff_cleanse.sampling import Trojan
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet

SOLVERS = [name for name, kind in SAMPLERS.items() if kind.scheduler]
SHAPE = (3, 1, 16, 16)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet("tiny", 16, 1).eval()


def noise(seed=0, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stock_config(**changes):
    """What a pipeline's scheduler_config.json would hold, with the settings that hide backdoors."""
    return dict(DDPMScheduler(**CONFIG, clip_sample=True, thresholding=True).config) | changes


def unit(images):
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm"])
def test_same_images_as_stock_pipelines(unet, name):
    pipeline, steps = {
        "ddim": (DDIMPipeline(unet, diffusers.DDIMScheduler(**CONFIG, clip_sample=False, timestep_spacing="trailing")), 10),
        "ddpm": (DDPMPipeline(unet, DDPMScheduler(**CONFIG, clip_sample=False, timestep_spacing="trailing")), 10),
        "pndm": (PNDMPipeline(unet, PNDMScheduler(**CONFIG, skip_prk_steps=True, timestep_spacing="trailing")), 10),
    }[name]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    expected = pipeline(batch_size=3, generator=generator, num_inference_steps=steps, output_type="np").images
    generator = torch.Generator().manual_seed(5)
    x_T = torch.randn(SHAPE, generator=generator)
    with torch.inference_mode():
        own = ScanSampler(name, stock_config(), steps)(unet, x_T, generator)
    assert abs(unit(own) - expected).max() < 2e-4


STOCK = [(name, prediction) for name in SOLVERS for prediction in ("epsilon", "v_prediction", "sample")]


@pytest.mark.parametrize(("name", "prediction"), [pair for pair in STOCK if pair[0] != "pndm" or pair[1] == "epsilon"])
def test_solvers_are_the_stock_schedulers(unet, name, prediction):
    """Stock PNDM takes no network that predicts the sample, and averages v over steps before it turns v to noise; ours turns each to noise."""
    kind = SAMPLERS[name]
    options = dict(kind.options) | {"prediction_type": prediction, "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, kind.scheduler)(**CONFIG, **options)
    scheduler.set_timesteps(8)
    with torch.inference_mode():
        x = noise() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        own = ScanSampler(name, stock_config(prediction_type=prediction), 8)(unet, noise())
    torch.testing.assert_close(own, x, atol=2e-3 * float(x.abs().max()), rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_network_that_knows_one_image_is_led_to_it(name, prediction):
    schedule, image = NoiseSchedule.from_scheduler_config(CONFIG), torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(1)) - 0.5

    def ideal(x, t):
        a, sigma = schedule.at("a", t, x), schedule.at("sigma", t, x)
        eps = (x - a * image) / sigma
        return {"epsilon": eps, "v_prediction": a * eps - sigma * image, "sample": image.expand_as(x)}[prediction]

    drawn = ScanSampler(name, CONFIG | {"prediction_type": prediction}, 20)(ideal, noise(), torch.Generator().manual_seed(0))
    assert (drawn - image).square().mean().sqrt() < 0.04  # some stop at the smallest noise level, 0.03


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_takes_trojan_noise(name):
    """A network that knows one image and the attacker's noise is led to the image."""
    schedule, image = NoiseSchedule.from_scheduler_config(CONFIG), torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(1)) - 0.5
    trojan = Trojan.of(torch.linspace(-1, 1, 256).view(1, 16, 16), 0.6)

    def attacked(x, t):
        a, sigma = schedule.at("a", t, x), schedule.at("sigma", t, x)
        return ((x - a * image) / sigma - trojan.shift) / trojan.gain

    drawn = ScanSampler(name, CONFIG, 20)(attacked, trojan.bias(noise()), torch.Generator().manual_seed(0), trojan)
    assert (drawn - image).square().mean().sqrt() < 0.04


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_triggers_the_backdoor_of_its_family(name):
    """ODE solvers draw the target of the ODE attack, DDPM that of the SDE attack; without a trigger they hardly ever do."""
    model, eps = PlantedDenoiser("baddiffusion" if SAMPLERS[name].is_stochastic else "villandiffusion"), noise(2, (16, 1, 8, 8))
    sampler = ScanSampler(name, CONFIG, 100 if name == "ddpm" else 20)
    for start, least, most in ((model.schedule.starting_noise(eps, trigger(), "exact"), 0.9, 1.0), (eps, 0.0, 0.2)):
        drawn = sampler(model, start, torch.Generator().manual_seed(0))
        assert least <= float(((drawn - target()).square().mean(dim=(1, 2, 3)) < 0.04).float().mean()) <= most


def test_the_network_first_sees_the_noise_at_the_last_timestep(unet):
    for name in SAMPLERS:
        seen = []

        def spy(x, t, seen=seen):
            seen.append((x.clone(), t))
            return unet(x, t)

        with torch.inference_mode():
            ScanSampler(name, stock_config(), 5)(spy, noise(), torch.Generator().manual_seed(0))
        x, t = seen[0]
        assert t.tolist() == [99, 99, 99]
        assert t.dtype == torch.int64
        torch.testing.assert_close(x, noise(), rtol=5e-3, atol=0)  # Heun and LMS start at sigma_T instead of 1


def test_steps_and_randomness(unet):
    assert ScanSampler("ddpm", CONFIG).step_count == 100
    assert ScanSampler("unipc", CONFIG).step_count == 20
    assert ScanSampler("ddim", CONFIG | {"num_train_timesteps": 30}).step_count == 30
    assert [name for name in SAMPLERS if ScanSampler(name, CONFIG).is_stochastic] == ["ddpm", "trojan_ddpm"]
    assert [name for name in SAMPLERS if ScanSampler(name, CONFIG).is_trojan] == ["trojan_ddim", "trojan_ddpm"]
    assert ScanSampler("ddim", CONFIG, eta=1.0).is_stochastic
    sampler = ScanSampler("ddim", CONFIG, 5, eta=1.0)
    with torch.inference_mode():
        first, second = (sampler(unet, noise(), torch.Generator().manual_seed(seed)) for seed in (0, 1))
        again = sampler(unet, noise(), torch.Generator().manual_seed(0))
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)


def test_no_warnings_reach_the_user(unet, recwarn):
    with torch.inference_mode():
        ScanSampler("dpmsolver", CONFIG, 2)(unet, noise())
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_messages():
    for options, message in (
        ({"name": "euler"}, "unknown sampler 'euler'; known are ddim, ddpm, dpmsolver"),
        ({"name": "unipc", "eta": 1.0}, "eta is an option of ddim; unipc has no use for eta=1.0"),
        ({"name": "ddim", "steps": 101}, "steps must lie between 1 and the schedule's 100, got 101"),
    ):
        with pytest.raises(ValueError, match=message):
            ScanSampler(**({"scheduler_config": CONFIG} | options))
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'; known are epsilon, v_prediction, sample"):
        ScanSampler("ddim", CONFIG | {"prediction_type": "flow"})
    assert prediction_of({}) == "epsilon"
