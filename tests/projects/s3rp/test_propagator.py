import torch
from torch.nn import functional as F

from projects.s3rp.layers import Propagator
from projects.s3rp.model import FineNet, Seen
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.physics import centred
from projects.s3rp.worlds import World, draw_plumes


def test_nothing_moves_to_begin_with():
    fields = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(Propagator("periodic")(fields, torch.rand(2, 1, 2, 8, 8)), fields)


def test_kernels_weigh_the_cells_around():
    """A kernel of one tap moves a field by that tap's offset, as torch.roll does."""
    propagator = Propagator("periodic", reach=1)
    with torch.no_grad():
        propagator.kernels[-1].bias.zero_()
        propagator.kernels[-1].bias[2] = 1.0  # the cell below and to the right gives
    fields = torch.rand(1, 2, 5, 6)
    torch.testing.assert_close(propagator(fields, torch.zeros(1, 1, 2, 5, 6)), fields.roll((1, -1), (-2, -1)))


def test_it_is_linear_in_the_fields_and_each_frame_has_its_wind():
    propagator = Propagator("open", channels=4)
    torch.nn.init.normal_(propagator.kernels[-1].weight)
    one, other, winds = torch.rand(2, 3, 6, 7), torch.rand(2, 3, 6, 7), torch.randn(2, 3, 2, 6, 7)
    together = propagator(2 * one - 3 * other, winds)
    torch.testing.assert_close(together, 2 * propagator(one, winds) - 3 * propagator(other, winds), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[:, 1:2], propagator((2 * one - 3 * other)[:, 1:2], winds[:, 1:2]), rtol=1e-5, atol=1e-5)


def test_several_steps_are_one_after_the_other_with_parts_of_the_wind():
    several = Propagator("periodic", channels=4, steps=2)
    torch.nn.init.normal_(several.kernels[-1].weight, std=0.3)
    once = Propagator("periodic", channels=4)
    once.load_state_dict(several.state_dict())
    fields, winds = torch.rand(1, 2, 6, 6), torch.randn(1, 1, 2, 6, 6)
    torch.testing.assert_close(several(fields, winds), once(once(fields, winds / 2), winds / 2))


def test_frames_without_observations_are_carried_and_teach_the_frames_before_nothing():
    plumes = draw_plumes(World(size=16, frames=4), 2).observations
    mask = plumes.mask.clone()
    mask[:, 2:] = False
    courant = centred(plumes.wind.scaled(0.8, 0.8))
    net = FineNet(propagation=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    fields = net(Seen(plumes.coarse * mask, mask, courant)).fields
    carried = net.propagator(fields[:, 1:2], courant)
    torch.testing.assert_close(fields[:, 2:3], carried)
    torch.testing.assert_close(fields[:, 3:4], net.propagator(carried, courant))
    fields[:, 2:].sum().backward()
    taught = {name.partition(".")[0] for name, parameter in net.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}
    assert taught == {"propagator"}


def test_a_propagator_learns_the_solvers_step():
    """Its loss is the mean square to the solver's step, and falls by half within a hundred steps on one batch."""
    plumes = draw_plumes(World(size=16, frames=3, diffusivity=0.01), 4)
    seen = plumes.observations
    module = PlumeSuperResolution(forecast=1)
    courant = centred(seen.wind.scaled(0.8, 0.8))
    fields, propagator = plumes.truth, module.net.propagator
    target = seen.physics.advance(fields[:, :-1], seen.wind)
    optimiser = torch.optim.Adam(propagator.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(propagator(fields[:, :-1], courant), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


def test_a_hybrid_network_forecasts_by_the_solver_and_a_plain_one_with_the_known_releases():
    seen = draw_plumes(World(size=16, frames=4, diffusivity=0.01, sources=1), 2).observations
    physics = seen.physics.with_options(substeps=3)
    mask = seen.mask.clone()
    mask[:, 2:] = False
    batch = seen.batch() | {"coarse": seen.coarse * mask, "mask": mask}
    fields = PlumeSuperResolution(hybrid=True, forecast=2)(batch, physics)
    torch.testing.assert_close(fields[:, 3], physics.advance(fields[:, 2], seen.wind.at(2), seen.source[:, 0]), rtol=1e-4, atol=1e-5)
    still = PlumeSuperResolution(forecast=2)(batch, physics)  # kernels that move nothing yet: what is released stays where it was
    torch.testing.assert_close(still[:, 3] - still[:, 2], physics.interval * seen.source[:, 0], rtol=1e-3, atol=1e-5)


def test_a_gap_between_observations_is_the_networks_and_not_a_forecast():
    seen = draw_plumes(World(size=16, frames=4, diffusivity=0.01), 2).observations
    mask = seen.mask.clone()
    mask[:, 1] = False
    net = FineNet(propagation=1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    courant = centred(seen.wind.scaled(0.8, 0.8))
    fields = net(Seen(seen.coarse * mask, mask, courant)).fields
    assert not torch.allclose(fields[:, 1:2], net.propagator(fields[:, :1], courant))


def test_gaps_in_observed_frames_are_filled_as_without_a_propagator_and_teach_it_nothing():
    """Otherwise a network with gaps in training learns to fill by forecasts, and hardly to super-resolve."""
    seen = draw_plumes(World(size=16, frames=4, diffusivity=0.01, missing=0.3), 2).observations
    net, plain = FineNet(propagation=1), FineNet()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith("propagator")})
    shown = Seen(seen.coarse, seen.mask, centred(seen.wind.scaled(0.8, 0.8)))
    fields = net(shown).fields
    torch.testing.assert_close(fields, plain(shown).fields)
    fields.square().sum().backward()
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in net.propagator.parameters())
