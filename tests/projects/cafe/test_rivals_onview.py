"""That rivals by name are the attacks they say, on the rounds, labels and models that a view tells."""

from typing import get_args

import pytest
import torch
from torch import nn

from projects.cafe.federation import Federation, observe
from projects.cafe.metrics import match, psnr
from projects.cafe.nets import BottomNet, ServerNet, conv_bottom, settle_norms, tabular_bottom
from projects.cafe.rivals.attacks import dlg, infer_labels, inverting_gradients
from projects.cafe.rivals.onview import RIVALS, Rival, aligned, rival
from projects.cafe.rivals.priors import batch_norm_statistics
from projects.cafe.rivals.views import attacked_at, observed_at
from shared.data.offline import digits
from shared.seeding import derive_seed
from shared.vertical.parts import join_image, split_image

DIGITS = digits("train", size=8)
IMAGES, LABELS = DIGITS.images[:6], DIGITS.labels[:6]
BLOCKS = split_image(IMAGES)
ROUNDS = torch.tensor([[True, False, False, False, False, False], [False, True, False, True, False, False]])


def smooth_bottom(seed):
    """A net without kinks, which DLG was published with."""
    torch.manual_seed(seed)
    return BottomNet(nn.Flatten(), nn.Linear(16, 24), nn.Sequential(nn.Sigmoid(), nn.Linear(24, 5)))


def picture_view(bottom=smooth_bottom, schedule=ROUNDS, **options):
    federation = Federation([bottom(party) for party in range(4)], ServerNet(4, 5, 10, 0))
    return observe(federation, BLOCKS, LABELS, schedule, **options)


def table_view():
    blocks = [3 * torch.randn(6, features, generator=torch.Generator().manual_seed(features)) for features in (4, 5)]
    bottoms = [tabular_bottom(features, [16], 5, seed=features) for features in (4, 5)]
    return observe(Federation(bottoms, ServerNet(2, 5, 3, 0)), blocks, torch.arange(6) % 3, ROUNDS), blocks


def normed_bottom(party):
    net = conv_bottom(1, 4, (4,), 12, 5, party, batch_norm=True)
    settle_norms(net, BLOCKS[party])
    return net


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip([*ours.blocks, ours.labels], [*theirs.blocks, theirs.labels], strict=True))


def decibels(recovered, truth):
    found = join_image(recovered.blocks)
    return float(psnr(found[match(found, truth)], truth).min())


@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_a_digit_is_recovered_from_a_round_of_its_own(name):
    recovered = rival(name, picture_view(), steps=80)
    assert decibels(recovered, IMAGES[:1]) > 30
    assert int(recovered.labels.argmax()) == LABELS[0]


def test_two_digits_of_known_labels_are_recovered_in_the_order_of_the_labels():
    recovered = rival("dlg", picture_view(known_labels=True), number=1, steps=150)
    truth = IMAGES[ROUNDS[1]]
    assert decibels(recovered, truth) > 30
    assert recovered.labels.argmax(1).tolist() == LABELS[ROUNDS[1]].tolist()
    assert float(psnr(join_image(recovered.blocks), truth).min()) > 30


@pytest.mark.parametrize("name", get_args(Rival))
def test_every_rival_has_a_line_and_lowers_its_objective(name):
    assert RIVALS[name].endswith(")")
    view = picture_view(normed_bottom)
    start, end = (rival(name, view, number=1, steps=steps, variation=0.01) for steps in (1, 12))
    assert end.loss < start.loss
    assert [block.shape for block in end.blocks] == [(2, 1, 4, 4)] * 4
    assert end.labels.shape == (2, 10)


def test_a_rival_is_the_attack_with_the_rounds_model_gradients_and_labels():
    federation = Federation([smooth_bottom(party) for party in range(4)], ServerNet(4, 5, 10, 0))
    optimiser = torch.optim.SGD(federation.parameters(), lr=1.0)
    view = observe(federation, BLOCKS, LABELS, ROUNDS, optimiser, known_labels=True)
    upload = attacked_at(view, 1), observed_at(view, 1), view.shapes, 2
    found = rival("dlg", view, number=1, steps=5, seed=3)
    expected = dlg(*upload, steps=5, seed=derive_seed(3, "dlg", 0), labels=LABELS[ROUNDS[1]])
    assert same(found, expected)
    assert same(rival("idlg", view, number=1, steps=5), dlg(*upload, steps=5, seed=derive_seed(0, "idlg", 0), labels=LABELS[ROUNDS[1]]))


def test_idlg_infers_labels_that_are_not_known():
    view = picture_view()
    upload, seed = (attacked_at(view, 1), observed_at(view, 1), view.shapes, 2), derive_seed(0, "idlg", 0)
    found = rival("idlg", view, number=1, steps=5)
    assert same(found, dlg(*upload, steps=5, seed=seed, labels=infer_labels(*upload, seed)))


def test_batch_norm_adds_the_statistics_at_a_tenth():
    view = picture_view(normed_bottom, known_labels=True)
    federation = view.federation(0)
    found = rival("batch_norm", view, steps=4)
    seed = derive_seed(derive_seed(0, "batch_norm", 0), 0)
    priors = [(0.1, batch_norm_statistics(federation, federation.bottoms))]
    upload = attacked_at(view, 0), observed_at(view, 0), view.shapes, 1
    assert same(found, inverting_gradients(*upload, steps=4, seed=seed, labels=LABELS[:1], priors=priors))


def test_restarts_keep_the_run_with_the_lowest_objective():
    view = picture_view()
    losses = [rival("dlg", view, steps=8, restarts=restarts).loss for restarts in range(1, 5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_records_of_a_table_are_neither_smoothed_nor_kept_between_0_and_1():
    view, blocks = table_view()
    recovered = rival("inverting_gradients", view, steps=100)
    assert min(float(block.min()) for block in recovered.blocks) < 0
    assert torch.cat(blocks, 1)[0].min() < 0
    pictures = rival("inverting_gradients", picture_view(), steps=10)
    assert all(block.min() >= 0 and block.max() <= 1 for block in pictures.blocks)


def test_matching_all_rounds_of_a_view_that_trains_lowers_the_distance():
    federation = Federation([smooth_bottom(party) for party in range(4)], ServerNet(4, 5, 10, 0))
    optimiser = torch.optim.SGD(federation.parameters(), lr=0.1)
    schedule = torch.eye(6, dtype=torch.bool)[:, [1, 0, 2, 3, 4, 5]]
    view = observe(federation, BLOCKS, LABELS, schedule, optimiser, known_labels=True)
    start, end = (aligned(view, steps) for steps in (0, 150))
    assert end.loss < start.loss / 10
    assert end.labels.argmax(1).tolist() == LABELS.tolist()
    error = [float((join_image(each.blocks) - IMAGES).square().mean()) for each in (start, end)]
    assert error[1] < error[0] / 2


def test_what_cannot_be_run_is_refused():
    view = picture_view()
    with pytest.raises(ValueError, match="unknown rival 'gan': choose one of dlg, idlg"):
        rival("gan", view)
    with pytest.raises(ValueError, match="round 2 is not among the 2 recorded ones: take 0 to 1"):
        rival("dlg", view, number=2)
    with pytest.raises(ValueError, match="at least once, got 0 restarts"):
        rival("dlg", view, restarts=0)
    with pytest.raises(ValueError, match=r"the nets have none: model\.batch_norm=true gives pictures' some"):
        rival("batch_norm", view)
