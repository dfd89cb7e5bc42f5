"""The offline worlds are functions of their seed, can be learnt, and need all parties."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from projects.vafl.worlds import SERIES_GROUPS, SOLIDS, VIEWS, carried_forward, handwriting, silhouettes, vital_signs


@pytest.mark.parametrize("world", [lambda seed: silhouettes(16, seed), lambda seed: vital_signs(50, seed)], ids=["views", "series"])
def test_a_world_is_a_function_of_its_seed(world):
    torch.manual_seed(1)
    first = world(3)
    torch.manual_seed(2)
    again, other = world(3), world(4)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.features, other.features)
    assert first.ids == again.ids
    assert not set(first.ids) & set(other.ids)


def test_handwriting_is_scikit_learns():
    records, data = handwriting(), load_digits()
    np.testing.assert_array_equal(records.features[:, 0].numpy() * 16, data.images)
    assert records.labels.tolist() == data.target.tolist()


def test_silhouettes_fit_into_their_pictures_and_turn_with_the_camera():
    records = silhouettes(8 * len(SOLIDS), noise=0)
    views = records.features[:, :, 0]
    assert views.shape == (64, VIEWS, 16, 16)
    assert set(views.unique().tolist()) == {0.0, 1.0}
    assert views[..., [0, -1], :].sum() == 0
    assert views[..., [0, -1]].sum() == 0
    assert torch.bincount(records.labels).tolist() == [8] * len(SOLIDS)
    area = views.sum((2, 3))
    assert area.min() > 0
    ball, bar = (area[records.labels == SOLIDS.index(name)] for name in ("ball", "bar"))
    assert ball.mean() > 2 * bar.mean()
    assert (bar.amax(1) / bar.amin(1)).median() > 1.5  # a bar is short when seen along its axis


def moments(views):
    """Area, extent and filling of each view, (N, V, 1, 16, 16) -> their mean, deviation and range over the views, (N, 16)."""
    pictures, places = views[:, :, 0].clamp(0, 1), torch.arange(16) - 7.5
    area, high, wide = pictures.sum((2, 3)), (pictures * places[:, None] ** 2).sum((2, 3)), (pictures * places**2).sum((2, 3))
    each = torch.stack([area, high, wide, pictures[..., 6:10, 6:10].mean((2, 3))], 2)
    return torch.cat([each.mean(1), each.std(1), each.amax(1), each.amin(1)], 1)


def test_twelve_views_tell_a_solid_and_three_do_not():
    records = silhouettes(800, seed=1)
    score = {}
    for name, views in (("all", slice(0, 12)), ("one party", slice(3, 6))):
        features = moments(records.features[:, views]).numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features[:600], records.labels[:600])
        score[name] = model.score(features[600:], records.labels[600:])
    assert score["all"] > 0.7
    assert 0.3 < score["one party"] < score["all"] - 0.1


def test_series_need_all_parties_and_few_die():
    records = vital_signs(1600, seed=1)
    assert records.labels.float().mean() == pytest.approx(0.15, abs=0.002)
    assert len({len(group) for group in SERIES_GROUPS}) == 4
    auc = []
    for group in (range(17), *SERIES_GROUPS):
        features = records.features[:, :, list(group)].flatten(1).numpy()
        model = LogisticRegression(max_iter=200, C=0.01).fit(features[:1200], records.labels[:1200])
        auc.append(roc_auc_score(records.labels[1200:], model.decision_function(features[1200:])))
    assert auc[0] > 0.85
    assert min(auc[1:]) > 0.55
    assert max(auc[1:]) < auc[0] - 0.1


def test_missing_values_are_the_last_measured_ones():
    values, measured = torch.randn(5, 9, 3), torch.rand(5, 9, 3) < 0.4
    carried = carried_forward(values, measured)
    for stay in range(5):
        for variable in range(3):
            last = 0.0
            for step in range(9):
                last = values[stay, step, variable].item() if measured[stay, step, variable] else last
                assert carried[stay, step, variable].item() == last


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="at least one object of each of the 8 solids, got 7"):
        silhouettes(7)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\), got 1"):
        vital_signs(share=1)
