"""S3RP-R: where latents come from, that the divergence pulls, and that the critic and the networks do not teach each other by mistake."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from projects.s3rp.calibration import crps
from projects.s3rp.losses import mmd_imq
from projects.s3rp.model import Seen
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.observing import block_mean, interpolate, project
from projects.s3rp.scaling import scale
from projects.s3rp.stochastic import LOG_DEVIATIONS, POOLED, Drawn, LatentCritic, LatentNet, Normal, latent_discrepancy, pooled_pairs
from projects.s3rp.worlds import World, draw_plumes
from shared.seeding import generator

FACTOR, SIDE, FRAMES, LATENTS = 4, 4, 3, 2


def look(missing=0.0):
    mask = torch.rand(2, FRAMES, SIDE, SIDE) >= missing
    return Seen(torch.rand(2, FRAMES, SIDE, SIDE) * mask, mask, torch.randn(2, 1, 2, FACTOR * SIDE, FACTOR * SIDE))


def network(**options):
    return LatentNet(FACTOR, 4, LATENTS, **options)


def awake(net):
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def silenced(head):
    """Set the last layer of a head to a narrow distribution around 3."""
    torch.nn.init.zeros_(head[-1].weight)
    head[-1].bias.data[:LATENTS], head[-1].bias.data[LATENTS:] = 3.0, -20.0
    return head


# ---- drawing


def test_draws_differ_and_are_a_function_of_the_generator():
    net, seen = awake(network()), look()
    one, other, again = (net(seen, generator(seed, "draw")).fields for seed in (0, 1, 0))
    assert torch.equal(one, again)
    assert float((one - other).abs().mean()) > 1e-3


def test_draws_of_a_normal_have_its_moments():
    normal = Normal(torch.full((1, 1, 200, 200), 2.0), torch.full((1, 1, 200, 200), 0.5))
    values = normal.draw(generator(0, "moments"))
    assert float(values.mean()) == pytest.approx(2, abs=0.02)
    assert float(values.std()) == pytest.approx(0.5, abs=0.01)


def test_deviations_keep_to_their_range():
    net = network()
    maps = torch.tensor([0.0, 0.0, -50.0, 50.0]).view(1, 4, 1, 1)
    logs = net._normal(maps).deviation.log().flatten().tolist()
    assert logs == pytest.approx(LOG_DEVIATIONS, abs=1e-5)


def test_latents_come_from_the_posterior_where_there_are_observations_and_else_from_the_prior():
    net, seen = awake(network()), look()
    seen.mask[0, 1] = False
    seen = seen._replace(coarse=seen.coarse * seen.mask)
    silenced(net.posterior)
    first, second = (net(seen, generator(seed, "draw")) for seed in (0, 1))
    difference = (first.fields - second.fields).abs().amax((2, 3))  # (B, T)
    assert float(difference[0, 0]) < 0.05, "the posterior has hardly a spread"
    assert float(difference[0, 1]) > 0.05, "the prior has"
    assert float(difference[1].max()) < 0.05
    assert [len(part) for part in first.posteriors] == [len(part) for part in first.priors] == [2, 1, 2]
    assert all(float((part - 3).abs().max()) < 0.05 for part in first.posteriors)


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_training_starts_at_bicubic_and_projection_of_the_first_frame(boundary):
    seen = look()
    fields = network(boundary=boundary)(seen, generator(0, "draw")).fields
    expected = project(interpolate(seen.coarse[:, 0], FACTOR, "bicubic", boundary), seen.coarse[:, 0])
    torch.testing.assert_close(fields[:, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_every_draw_averages_to_the_observations(cell):
    net, seen = awake(network(cell=cell)), look(missing=0.3)
    means = block_mean(net(seen, generator(0, "draw")).fields, FACTOR)
    torch.testing.assert_close(means[seen.mask], seen.coarse[seen.mask], rtol=0, atol=1e-5)


def test_no_frame_sees_what_comes_after_it_and_forecasts_see_nothing():
    net, seen = awake(network()), look()
    before = net(seen, generator(0, "draw")).fields
    coarse = seen.coarse.clone()
    coarse[:, 2] += 1
    assert torch.equal(net(seen._replace(coarse=coarse), generator(0, "draw")).fields[:, :2], before[:, :2])
    seen.mask[:, 1:] = False
    blank, leaking = (net(seen._replace(coarse=values), generator(0, "draw")).fields for values in (seen.coarse * seen.mask, seen.coarse))
    assert torch.equal(blank, leaking)


def test_without_any_observation_fields_are_finite_and_there_is_nothing_to_compare():
    seen = look()
    seen.mask[:] = False
    drawn = awake(network())(seen._replace(coarse=seen.coarse * 0), generator(0, "draw"))
    assert bool(drawn.fields.isfinite().all())
    assert pooled_pairs(drawn, generator(0, "pairs")) == []
    assert float(latent_discrepancy(drawn, generator(0, "pairs"))) == 0


def test_a_periodic_network_moves_with_the_domain():
    net, seen = awake(network()), look(missing=0.2)
    silenced(net.posterior)
    net.posterior[-1].bias.data[LATENTS:] = -1e9
    moved = Seen(*(part.roll((cells, -cells), (-2, -1)) for part, cells in zip(seen[:3], (1, 1, FACTOR), strict=True)))
    narrow = [net(one, generator(0, "draw")).fields for one in (seen, moved)]
    torch.testing.assert_close(narrow[1], narrow[0].roll((FACTOR, -FACTOR), (-2, -1)), rtol=0, atol=0.05)


# ---- the divergence


def drawn(count=3, side=SIDE, frames=2):
    maps = [torch.randn(count, LATENTS, side, side) for _ in range(2 * frames)]
    return Drawn(torch.zeros(1), maps[:frames], maps[frames:])


def test_pairs_are_vectors_of_the_same_positions():
    made = drawn()
    made = dataclasses.replace(made, priors=[part + 100 for part in made.posteriors])
    pairs = pooled_pairs(made, generator(0, "pairs"))
    assert len(pairs) == 2
    for (vectors, others), maps in zip(pairs, made.posteriors, strict=True):
        torch.testing.assert_close(others, vectors + 100)
        positions = maps.permute(0, 2, 3, 1).reshape(-1, LATENTS)
        assert sorted(map(tuple, vectors.tolist())) == sorted(map(tuple, positions.tolist()))
    assert [len(pair[0]) for pair in pooled_pairs(drawn(5, 16), generator(0, "pairs"))] == [POOLED, POOLED]


def test_the_discrepancy_sums_over_frames():
    made = drawn()
    vectors = [[maps.permute(0, 2, 3, 1).reshape(-1, LATENTS) for maps in part] for part in (made.posteriors, made.priors)]
    expected = sum(float(mmd_imq(*pair)) for pair in zip(*vectors, strict=True))
    assert float(latent_discrepancy(made, generator(0, "pairs"))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["mmd", "critic"])
def test_the_divergence_pulls_the_posterior_to_the_prior(kind):
    net, seen = awake(network()), look()
    net.posterior[-1].bias.data[:LATENTS] = 2.0
    critic = LatentCritic(LATENTS)
    optimiser, judge = torch.optim.Adam(net.posterior.parameters(), 0.05), torch.optim.Adam(critic.parameters(), 0.05)
    gaps = []
    for step in range(40):
        made = net(seen, generator(step, "draw"))
        pairs = pooled_pairs(made, generator(step, "pairs"))
        gaps.append(float(torch.stack([(one.mean(0) - other.mean(0)).norm() for one, other in pairs]).mean()))
        loss = latent_discrepancy(made, generator(step, "pairs")) if kind == "mmd" else critic.divergence(pairs) + critic.own_loss(pairs)
        optimiser.zero_grad()
        judge.zero_grad()
        loss.backward()
        optimiser.step()
        judge.step()
    assert sum(gaps[-5:]) < 0.4 * sum(gaps[:5])


# ---- the critic


def test_the_critic_learns_by_the_logistic_loss():
    critic, pairs = LatentCritic(LATENTS), [(torch.randn(5, LATENTS), torch.randn(5, LATENTS)) for _ in range(2)]
    own, pull = 0.0, 0.0
    for posterior, prior in pairs:
        zero, one = critic(posterior), critic(prior)
        own += F.binary_cross_entropy_with_logits(zero, torch.zeros(5)) + F.binary_cross_entropy_with_logits(one, torch.ones(5))
        pull += F.binary_cross_entropy_with_logits(zero, torch.ones(5)) + F.binary_cross_entropy_with_logits(one, torch.zeros(5))
    torch.testing.assert_close(critic.own_loss(pairs), own)
    torch.testing.assert_close(critic.divergence(pairs), pull)


def test_the_critics_loss_teaches_the_critic_alone_and_the_divergence_both_distributions():
    critic = LatentCritic(LATENTS)
    posterior, prior = (torch.randn(6, LATENTS, requires_grad=True) for _ in range(2))
    critic.own_loss([(posterior, prior)]).backward()
    assert posterior.grad is None
    assert prior.grad is None
    assert all(bool(parameter.grad.any()) for parameter in critic.parameters())
    critic.zero_grad()
    critic.divergence([(posterior, prior)]).backward()
    assert bool(posterior.grad.any())
    assert bool(prior.grad.any())
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_draws_are_scored_by_frames_ahead_that_the_solver_carries_them_to():
    """The score is that of a loop over draws, frames and steps, and least where the spread of the first frame is the right one."""
    world = World(size=16, frames=4, diffusivity=0.01, turning=2.0, sources=1)
    plumes = draw_plumes(world, 2)
    seen = plumes.observations
    module = PlumeSuperResolution(net="s3rp_r", ahead=2)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(observations=lambda split: seen))
    physics = seen.physics.with_options(substeps=3)
    scaled = scale(seen.batch(), physics)
    fields = torch.stack([plumes.truth * factor / scaled.scale for factor in (0.9, 1.0, 1.2)])
    scores = []
    for step in (1, 2):
        for frame in range(4 - step):
            carried = fields[:, :, frame]
            for later in range(step):
                carried = physics.advance(carried, seen.wind.at(frame + later), seen.source[:, 0] / scaled.scale[:, 0])
            scores.append((step, crps(block_mean(carried, 4), scaled.coarse[:, frame + step], fair=True).mean()))
    expected = sum(torch.stack([score for step, score in scores if step == wanted]).mean() for wanted in (1, 2)) / 2
    torch.testing.assert_close(module._score_ahead(fields, scaled, physics, generator(0, "noise")), expected, rtol=1e-4, atol=1e-6)
