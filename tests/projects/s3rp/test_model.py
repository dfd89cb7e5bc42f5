"""S3RP-D and the single-frame network: where training starts, what is kept exactly, what each frame may see, and what moves with the domain."""

import weakref

import pytest
import torch
from torch.nn import functional as F

from projects.s3rp.model import SRCNN, FineNet, Seen, base_of, first_guess
from projects.s3rp.observing import block_mean, interpolate, project, repeat
from projects.s3rp.physics import Physics, Wind, centred, wind_from_stream

FACTOR, SIDE, FRAMES = 4, 5, 4
VARIANTS = {
    "plain": {},
    "lstm": {"cell": "lstm"},
    "coarse grid": {"grid": "coarse"},
    "no mask": {"mask_channel": False},
    "hybrid": {"hybrid": True},
    "bidirectional": {"bidirectional": True},
    "sources": {"source": True},
    "open": {"boundary": "open"},
    "everything": {"cell": "lstm", "grid": "coarse", "hybrid": True, "bidirectional": True, "source": True},
}


def look(batch=2, frames=FRAMES, missing=0.0, winds=None, dtype=torch.float64):
    mask = torch.rand(batch, frames, SIDE, SIDE) >= missing
    coarse = torch.rand(batch, frames, SIDE, SIDE, dtype=dtype) * mask
    return Seen(coarse, mask, torch.randn(batch, winds or frames, 2, FACTOR * SIDE, FACTOR * SIDE, dtype=dtype))


def awake(net):
    """Give every layer weights, the last one too, as training does."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.double()


def carry(field, frame):
    return field.roll(frame + 1, -1)


def made(net, seen):
    with torch.no_grad():
        return net(seen, carry).fields


def changed(seen, frame, by=1.0):
    coarse = seen.coarse.clone()
    coarse[:, frame] += by * seen.mask[:, frame]
    return seen._replace(coarse=coarse)


# ---- size and start


def test_the_network_has_the_parameters_of_the_paper():
    count = sum(parameter.numel() for parameter in FineNet(channels=16, mask_channel=False).parameters())
    by_hand = (4 * 16 + 16 * 16 + 32 * 32 + 32 * 16 + 2 * 16 * 16 + 16) * 9 + 16 + 16 + 32 + 16 + 16 + 16 + 1
    assert count == by_hand == 21569


@pytest.mark.parametrize("name", [name for name in VARIANTS if not VARIANTS[name].get("hybrid")])
def test_training_starts_exactly_at_bicubic_and_projection(name):
    options, seen = VARIANTS[name], look()
    bicubic = interpolate(seen.coarse, FACTOR, "bicubic", options.get("boundary", "periodic"))
    torch.testing.assert_close(made(FineNet(FACTOR, 3, **options).double(), seen), project(bicubic, seen.coarse), rtol=0, atol=1e-13)
    torch.testing.assert_close(made(FineNet(FACTOR, 3, gain=0.0, **options).double(), seen), bicubic, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["hybrid", "everything"])
def test_a_hybrid_starts_at_the_solver_and_projection(name):
    seen = look()
    expected = [project(interpolate(seen.coarse[:, 0], FACTOR), seen.coarse[:, 0])]
    for frame in range(1, FRAMES):
        expected.append(project(carry(expected[-1], frame - 1), seen.coarse[:, frame]))
    fields = made(FineNet(FACTOR, 3, **VARIANTS[name]).double(), seen)
    torch.testing.assert_close(fields, torch.stack(expected, 1), rtol=0, atol=1e-13)


def test_bicubic_is_that_of_torch_on_a_domain_continued_by_hand():
    coarse = torch.rand(1, 1, SIDE, SIDE).double()
    around = coarse.tile(1, 1, 3, 3)
    inside = slice(FACTOR * SIDE, 2 * FACTOR * SIDE)
    expected = F.interpolate(around, scale_factor=FACTOR, mode="bicubic")[..., inside, inside]
    torch.testing.assert_close(interpolate(coarse, FACTOR), expected, rtol=0, atol=1e-14)


# ---- what is kept exactly


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_fields_average_to_the_observations_where_there_are_some(options):
    seen = look(missing=0.3)
    fields = made(awake(FineNet(FACTOR, 3, **options)), seen)
    assert bool(fields.isfinite().all())
    means = block_mean(fields, FACTOR)
    torch.testing.assert_close(means[seen.mask], seen.coarse[seen.mask], rtol=0, atol=1e-12)
    assert float((means - seen.coarse)[~seen.mask].abs().max()) > 1e-3


def test_a_gain_below_one_leaves_its_part_of_the_difference():
    seen, net = look(frames=1), awake(FineNet(FACTOR, 3, gain=0.0))
    free = made(net, seen)
    net.gain = 0.25
    means = block_mean(made(net, seen), FACTOR)
    torch.testing.assert_close(means, block_mean(free, FACTOR) + 0.25 * (seen.coarse - block_mean(free, FACTOR)), rtol=0, atol=1e-12)


# ---- gaps and forecasts


def test_gaps_are_filled_by_what_the_field_before_looks_like_from_afar():
    seen, field = look(missing=0.4), torch.rand(2, FACTOR * SIDE, FACTOR * SIDE).double()
    base = base_of(seen, 1, field, FACTOR, "periodic")
    coarse = seen.coarse[:, 1].clone()
    for row, y, x in (~seen.mask[:, 1]).nonzero().tolist():
        coarse[row, y, x] = field[row, FACTOR * y : FACTOR * (y + 1), FACTOR * x : FACTOR * (x + 1)].mean()
    where = repeat(seen.mask[:, 1], FACTOR)
    assert torch.equal(base[where], interpolate(coarse, FACTOR)[where])
    assert torch.equal(base[~where], field[~where])


def test_a_network_that_says_nothing_keeps_the_field_in_missing_frames():
    seen = look()
    seen.mask[:, 2:] = False
    fields = made(FineNet(FACTOR, 3).double(), seen._replace(coarse=seen.coarse * seen.mask))
    torch.testing.assert_close(fields[:, 2], fields[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(fields[:, 3], fields[:, 1], rtol=0, atol=0)


def test_the_first_guess_is_the_first_frame_that_was_seen():
    seen = look()
    seen.mask[0, :2] = False
    guess = first_guess(seen, FACTOR, "periodic")
    assert torch.equal(guess[0], interpolate(seen.coarse[0, 2], FACTOR))
    assert torch.equal(guess[1], interpolate(seen.coarse[1, 0], FACTOR))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("hidden", [slice(0, 1), slice(None)], ids=["first", "all"])
def test_missing_frames_leave_finite_fields(options, hidden):
    seen = look()
    seen.mask[:, hidden] = False
    fields = made(awake(FineNet(FACTOR, 3, **options)), seen._replace(coarse=seen.coarse * seen.mask))
    assert bool(fields.isfinite().all())


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_complete_frames_are_treated_as_masked_ones_are(options):
    """A sequence beside an incomplete one takes the way of masks, by itself the short one."""
    net, seen = awake(FineNet(FACTOR, 3, **options)), look()
    seen.mask[1, 1, 2, 2] = False
    whole = Seen(*(part[:1] for part in seen[:3]))
    torch.testing.assert_close(made(net, seen)[:1], made(net, whole), rtol=0, atol=1e-13)


def test_steady_winds_count_for_all_frames():
    net, seen = awake(FineNet(FACTOR, 3, bidirectional=True)), look(winds=1)
    spread = seen._replace(courant=seen.courant.expand(-1, FRAMES, -1, -1, -1))
    torch.testing.assert_close(made(net, seen), made(net, spread), rtol=0, atol=1e-14)


# ---- what a frame may see


@pytest.mark.parametrize("options", [VARIANTS[name] for name in ("plain", "lstm", "coarse grid", "hybrid", "open")], ids=str)
def test_no_frame_sees_what_comes_after_it(options):
    net, seen = awake(FineNet(FACTOR, 3, **options)), look(missing=0.2)
    before = made(net, seen)
    for frame in range(1, FRAMES):
        after = made(net, changed(seen, frame))
        assert torch.equal(after[:, :frame], before[:, :frame])
        assert all(float((after - before)[:, later].abs().max()) > 1e-6 for later in range(frame, FRAMES)), "and all later ones remember"


def test_winds_are_those_that_carried_the_field_to_a_frame():
    net, seen = awake(FineNet(FACTOR, 3)), look()
    before, courant = made(net, seen), seen.courant.clone()
    courant[:, 2] += 1
    after = made(net, seen._replace(courant=courant))
    assert torch.equal(after[:, :3], before[:, :3])
    assert not torch.equal(after[:, 3], before[:, 3])


def test_forecasts_do_not_see_what_they_are_to_tell():
    net, seen = awake(FineNet(FACTOR, 3, bidirectional=True)), look()
    seen.mask[:, 2:] = False
    hidden = seen._replace(coarse=seen.coarse * seen.mask)
    leaking = hidden._replace(coarse=hidden.coarse + 5.0 * ~seen.mask)
    torch.testing.assert_close(made(net, leaking)[:, :2], made(net, hidden)[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(made(net, leaking), made(net, hidden), rtol=0, atol=1e-12)


def test_a_network_that_looks_ahead_tells_the_first_frame_by_the_last():
    net, seen = awake(FineNet(FACTOR, 3, bidirectional=True)), look()
    assert float((made(net, changed(seen, FRAMES - 1)) - made(net, seen))[:, 0].abs().max()) > 1e-6


def test_single_frames_know_neither_winds_nor_other_frames():
    for net in (awake(FineNet(FACTOR, 3, recurrent=False)), awake(SRCNN(FACTOR))):
        seen = look()
        before = made(net, seen)
        assert torch.equal(made(net, seen._replace(courant=seen.courant + 1)), before)
        after = made(net, changed(seen, 1, 0.5))
        assert torch.equal(after[:, [0, 2, 3]], before[:, [0, 2, 3]])
        assert not torch.equal(after[:, 1], before[:, 1])


def test_a_hybrid_sees_the_solver_and_is_asked_for_each_frame_but_the_first():
    net, seen, asked = awake(FineNet(FACTOR, 3, hybrid=True)), look(), []
    net(seen, lambda field, frame: asked.append(frame) or field)
    assert asked == [0, 1, 2]
    assert float((made(net, seen) - net(seen, lambda field, frame: 2 * field).fields)[:, 1:].detach().abs().max()) > 1e-6


# ---- the domain


@pytest.mark.parametrize("name", VARIANTS)
def test_a_periodic_network_moves_with_the_domain_by_whole_coarse_cells(name):
    options, seen = VARIANTS[name], look(missing=0.2)
    net = awake(FineNet(FACTOR, 3, **options))
    moved = Seen(*(part.roll((cells * 1, cells * -2), (-2, -1)) for part, cells in zip(seen[:3], (1, 1, FACTOR), strict=True)))

    def still(field, frame):
        return 0.5 * field

    with torch.no_grad():
        expected = net(seen, still).fields.roll((FACTOR, -2 * FACTOR), (-2, -1))
        found = net(moved, still).fields
    assert torch.allclose(found, expected, atol=1e-12) is (options.get("boundary") != "open")


def test_sources_are_positive_the_same_in_all_frames_and_small_to_begin_with():
    found = FineNet(FACTOR, 3, source=True).double()(look()).source
    assert found.shape == (2, 1, FACTOR * SIDE, FACTOR * SIDE)
    assert 0 < float(found.min()) <= float(found.max()) < 0.05
    assert FineNet(FACTOR, 3)(look(dtype=torch.float32)).source is None


# ---- gradients


@pytest.mark.parametrize("options", [VARIANTS[name] for name in ("plain", "everything")], ids=["plain", "everything"])
def test_checkpointing_changes_no_gradient(options):
    net, seen = awake(FineNet(FACTOR, 3, **options)), look(missing=0.2)
    gradients = []
    for net.checkpointing in (False, True):
        found = net(seen, carry)
        loss = found.fields.square().sum() + (0 if found.source is None else found.source.square().sum())
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_layer_learns(options):
    net = awake(FineNet(FACTOR, 3, **options))
    found = net(look(missing=0.2), carry)
    (found.fields.square().sum() + (0 if found.source is None else found.source.sum())).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in net.parameters())


# ---- the single-frame network


def test_the_single_frame_network_is_that_of_its_paper():
    net = SRCNN(FACTOR)
    shapes = [tuple(layer.weight.shape) for layer in net.layers if hasattr(layer, "weight")]
    assert shapes == [(64, 1, 9, 9), (32, 64, 5, 5), (1, 32, 5, 5)]
    seen = look(dtype=torch.float32)
    torch.testing.assert_close(made(net, seen), interpolate(seen.coarse, FACTOR), rtol=0, atol=1e-6)


def test_velocities_at_centres_are_the_means_of_their_faces():
    wind = wind_from_stream(torch.randn(1, 1, 4, 4).double(), (0.5, 0.25))
    found = centred(Wind(*wind))[0, 0]
    for y in range(4):
        for x in range(4):
            assert float(found[0, y, x]) == pytest.approx(float(wind.u[0, 0, y, x] + wind.u[0, 0, y, (x + 1) % 4]) / 2)
            assert float(found[1, y, x]) == pytest.approx(float(wind.v[0, 0, y, x] + wind.v[0, 0, (y + 1) % 4, x]) / 2)
    assert Physics(0.0, 1.0, (1.0, 1.0)).boundary == "periodic"


@pytest.mark.parametrize("options", [{}, {"cell": "lstm", "grid": "coarse"}], ids=["plain", "lstm on the coarse grid"])
def test_states_of_past_frames_are_not_kept_without_a_gradient(options):
    """They are C times as large as the fields: memory must not grow by them with the length of a sequence."""
    net, states, alive = FineNet(channels=4, **options).double(), [], []

    def watch(cell, given, state):
        alive.append(sum(one() is not None for one in states))
        states.append(weakref.ref(state))

    net.cell.register_forward_hook(watch)
    with torch.inference_mode():
        net(look(frames=8))
    assert len(alive) == 8
    assert max(alive) <= 1
