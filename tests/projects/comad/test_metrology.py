import functools

import cv2
import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from projects.comad.measures import Measures, pack, unpack
from projects.comad.metrology import Metrology, MetrologySettings

COLOURS = {1: (200, 60, 40), 2: (60, 160, 90)}


def scene(discs=(12, 12, 12), boxes=((8, 30),), seed=0, size=224, shift=0, jitter=8):
    """A picture and its soft heat maps of background, discs of radii in the upper half, and boxes of heights and widths in the lower half."""
    rng = np.random.default_rng(seed)
    marks = np.zeros((size, size), np.uint8)
    for index, radius in enumerate(discs):
        centre = (40 + 60 * index + int(rng.integers(-jitter, jitter + 1)), 60 + shift + int(rng.integers(-jitter, jitter + 1)))
        cv2.circle(marks, centre, radius, 1, -1)
    for index, (height, width) in enumerate(boxes):
        left, top = 30 + 70 * index + int(rng.integers(-5, 6)), 160 - shift + int(rng.integers(-5, 6))
        marks[top : top + height, left : left + width] = 2
    hot = np.stack([(marks == k).astype(np.float32) for k in range(3)])
    soft = np.stack([cv2.GaussianBlur(one, (0, 0), 1.5) for one in hot]) + 0.02 * rng.random((3, size, size), dtype=np.float32)
    image = np.full((size, size, 3), 120, np.uint8)
    for k, colour in COLOURS.items():
        image[marks == k] = colour
    image = (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(soft / soft.sum(0)), torch.from_numpy(image).permute(2, 0, 1)


def batch(*scenes):
    return torch.stack([heat for heat, _ in scenes]), torch.stack([image for _, image in scenes])


@functools.cache
def good(count=16, size=224):
    radii = [(12, 12, 12), (11, 12, 12), (12, 13, 12)]
    return batch(*[scene(radii[seed % 3], ((8, 30), (20, 20)), seed, size) for seed in range(count)])


@pytest.fixture(scope="module")
def fitted():
    metrology = Metrology()
    training = metrology.fit(*good())
    return metrology, training


def reference(heat, images, kept, multipliers=(1, 1.1, 1.2, 1.3, 1.4)):
    """The measures by loops over pictures, with OpenCV and scikit-learn."""
    levels = np.rint(heat.numpy() * 128).astype(np.uint8)
    ratios = []
    for image in images:
        _, a, b = cv2.split(cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2LAB))
        ratios.append((b / (a.astype(float) + 1e-7)) ** 2)
    found = {}
    for k in kept:
        cuts = [cv2.threshold(np.ascontiguousarray(one[k, 10:-10, 10:-10]), 0, 255, cv2.THRESH_OTSU)[0] for one in levels]
        areas = np.array([[(one[k] > int(m * t)).sum() for one, t in zip(levels, cuts, strict=True)] for m in multipliers])
        best = int(np.argmin(areas.std(1) / areas.mean(1)))
        masks = [one[k] > int(multipliers[best] * t) for one, t in zip(levels, cuts, strict=True)]
        colour = np.array([ratio[mask].mean() for ratio, mask in zip(ratios, masks, strict=True)])
        stats = [cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA] for mask in masks]
        pieces = [np.sort(areas[areas > 50]) for areas in stats]
        pooled = np.sort(np.concatenate(pieces))
        labels = DBSCAN(eps=0.1 * pooled.mean(), min_samples=10).fit_predict(pooled[:, None].astype(float))
        counts = np.zeros((len(masks), max(1, labels.max() + 1)), int)
        for row, own in enumerate(pieces):
            for area in own:
                votes = labels[np.argsort(abs(pooled - area), kind="stable")[:5]]
                winner = int(np.bincount(votes + 1).argmax()) - 1
                if winner >= 0:
                    counts[row, winner] += 1
        a, c = areas[best] / areas[best].mean(), colour / (colour.mean() + 1e-7)
        found[k] = {"offset": multipliers[best], "area": a, "colour": c, "masks": np.stack(masks), "counts": counts}
    return found


def test_measures_are_those_of_the_paper(fitted):
    metrology, training = fitted
    heat, images = good()
    assert metrology.components == (1, 2)
    expected = reference(heat, images, (1, 2))
    for index, k in enumerate(metrology.components):
        assert float(metrology.offsets[index]) == expected[k]["offset"]
        np.testing.assert_array_equal(training.unpacked()[:, index].numpy(), expected[k]["masks"])
        np.testing.assert_allclose(training.groups["global"].normalised[:, index].numpy(), expected[k]["area"], rtol=1e-12)
        np.testing.assert_allclose(training.groups["global"].normalised[:, 2 + index].numpy(), expected[k]["colour"], rtol=1e-9)
        np.testing.assert_array_equal(training.histograms[index].numpy(), expected[k]["counts"])
    assert training.histograms[1].tolist() == [[1, 1]] * 16  # two sizes of boxes
    assert training.number.tolist() == [[2 if index % 3 else 3, 2] for index in range(16)]  # too few discs have radius 11 or 13


def test_a_later_picture_is_measured_as_the_training_ones(fitted):
    metrology, training = fitted
    heat, images = good()
    again = metrology.measure(heat[3:6], images[3:6])
    for name, group in again.groups.items():
        torch.testing.assert_close(group.normalised, training.groups[name].normalised[3:6])
    assert all(torch.equal(a, b[3:6]) for a, b in zip(again.histograms, training.histograms, strict=True))
    assert torch.equal(again.masks, training.masks[3:6])
    assert torch.equal(metrology.masks(heat[3:6]), again.unpacked())
    assert torch.equal(metrology.measure(heat[3], images[3]).masks, again.masks[:1])  # one picture without a batch


def test_pictures_can_come_one_by_one_and_as_levels(fitted):
    metrology, training = fitted
    heat, images = good()
    other = Metrology()
    levels = [(one * 128).round().to(torch.uint8) for one in heat]
    one_by_one = other.fit(levels, list(images))
    torch.testing.assert_close(one_by_one.groups["global"].normalised, training.groups["global"].normalised)
    assert torch.equal(other.offsets, metrology.offsets)


def test_missing_and_extra_pieces_change_area_and_number(fitted):
    metrology, _ = fitted
    missing, extra = scene((12, 12), ((8, 30), (20, 20)), 90), scene((12, 12, 12), ((8, 30), (20, 20), (20, 20)), 91)
    found = metrology.measure(*batch(missing, extra))
    assert found.number.tolist() == [[2, 2], [3, 3]]
    assert found.histograms[1].tolist() == [[1, 1], [1, 2]]
    area = found.groups["global"].normalised[:, :2]
    assert area[0, 0] == pytest.approx(2 / 3, abs=0.06)
    assert area[1, 1] == pytest.approx(1 + 400 / 640, abs=0.06)


def test_the_colour_of_a_part_changes_colour_only(fitted):
    metrology, training = fitted
    heat, images = good()
    painted = images[:1].clone()
    on = training.unpacked([0])[0, 0]
    painted[0, :, on] = torch.tensor([[60], [60], [220]], dtype=torch.uint8)
    change = metrology.measure(heat[:1], painted).groups["global"].normalised - training.groups["global"].normalised[:1]
    assert abs(float(change[0, 2])) > 0.5
    assert change[0, [0, 1, 3]].abs().max() < 1e-9


def test_a_component_that_is_absent_has_no_area_and_the_usual_colour(fitted):
    metrology, _training = fitted
    found = metrology.measure(*batch(scene((), ((8, 30), (20, 20)), 5)))
    table = found.table(0)
    assert (table[0]["area"], table[0]["colour"], table[0]["x"], table[0]["elongation"], table[0]["number"]) == (0, None, None, None, 0)
    assert table[0]["relative"]["area"] == 0
    assert table[0]["relative"]["colour"] == pytest.approx(1, abs=1e-6)
    assert table[0]["relative"]["x"] == 0
    assert not any(group.normalised.isnan().any() for group in found.groups.values())
    assert table[1]["pieces"] == [1, 1]
    assert table[1]["relative"]["area"] == pytest.approx(1, abs=0.05)


def test_positions_are_centroids_and_shares_of_windows(fitted):
    metrology, training = fitted
    masks = training.unpacked()
    for index in range(2):
        rows, columns = np.nonzero(masks[4, index].numpy())
        x, y = training.groups["position"].raw[4].view(2, 2)[:, index]
        assert (float(x), float(y)) == pytest.approx(((columns + 0.5).mean() / 224, (rows + 0.5).mean() / 224))
        shares = training.groups["grid"].raw[4].view(2, 3, 3)[index]
        for i in range(3):
            for j in range(3):
                inside = masks[4, index, 56 * i : 56 * i + 112, 56 * j : 56 * j + 112].sum() / len(rows)
                assert float(shares[i, j]) == pytest.approx(float(inside))
    assert [column.measure for column in metrology.columns("position")] == ["x", "x", "y", "y"]
    assert metrology.columns("grid")[9].components == (2,)


def test_extensions_are_in_training_deviations_with_a_floor(fitted):
    _, training = fitted
    for name in ("position", "grid", "shape", "pair"):
        raw, normalised = training.groups[name].raw, training.groups[name].normalised
        expected = (raw - raw.mean(0)) / raw.std(0, correction=0).clamp_min(0.01)
        torch.testing.assert_close(normalised, expected)


def test_parts_that_change_places_keep_area_and_number_but_not_position(fitted):
    metrology, training = fitted
    moved = metrology.measure(*batch(scene((12, 12, 12), ((8, 30), (20, 20)), 7, shift=100)))
    usual = training.groups["position"].normalised.abs().max()
    assert moved.groups["position"].normalised.abs().max() > 5 > 1.5 * usual / 2
    assert moved.number.tolist() == [[3, 2]]
    assert (moved.groups["global"].normalised - 1).abs().max() < 0.1
    pair = dict(zip([column.measure for column in metrology.columns("pair")], moved.groups["pair"].normalised[0].tolist(), strict=True))
    assert abs(pair["y difference"]) > 5 > abs(pair["log area ratio"])


def test_pairs_relate_areas_and_centroids(fitted):
    _, training = fitted
    area, (x, y) = training.groups["global"].raw[:, :2], training.groups["position"].raw.view(-1, 2, 2).unbind(1)
    expected = torch.stack([(area[:, 0] / area[:, 1]).log(), x[:, 0] - x[:, 1], y[:, 0] - y[:, 1]], dim=1)
    torch.testing.assert_close(training.groups["pair"].raw, expected)


def test_shape_is_the_mean_elongation_of_pieces(fitted):
    _, training = fitted
    shape = training.groups["shape"].raw.mean(0)
    assert shape[0] < 0.06
    assert float(shape[1]) == pytest.approx((1 - 8 / 30) / 2, abs=0.06)


def test_extensions_are_switchable_and_change_nothing_else(fitted):
    _, training = fitted
    plain = Metrology(MetrologySettings(extensions=())).fit(*good())
    assert list(plain.groups) == ["global"]
    assert torch.equal(plain.groups["global"].normalised, training.groups["global"].normalised)
    with pytest.raises(ValueError, match="extensions texture are not known: use some of position, grid, shape, pair"):
        MetrologySettings(extensions=("texture",))


def test_measures_do_not_hang_on_the_size_of_chunks(fitted, monkeypatch):
    _, training = fitted
    monkeypatch.setattr("projects.comad.metrology.PIXELS", 3 * 224 * 224)
    other = Metrology().fit(*good())
    assert torch.equal(other.groups["pair"].raw, training.groups["pair"].raw)
    assert torch.equal(other.masks, training.masks)


def test_pieces_of_a_size_that_is_rare_are_not_counted_and_are_reported():
    scenes = [scene((12, 12, 12 if seed else 28), ((8, 30),), seed) for seed in range(6)]
    metrology = Metrology()
    training = metrology.fit(*batch(*scenes))
    first, second = metrology.report()
    assert first["classes"][0]["pieces"] == 17
    assert first["pieces"] == 18
    assert first["noise"] == pytest.approx(1 / 18)
    assert first["component"] == 1
    assert first["area"] == pytest.approx(float(training.groups["global"].raw[:, 0].mean()))
    assert second["classes"] == [{"pieces": 6, "from": 236, "to": 236}]  # too few to form a class: all count as one
    assert second["noise"] == 0
    assert training.histograms[1].tolist() == [[1]] * 6


def test_pieces_that_touch_can_be_split():
    scenes = [scene((26, 26, 26), ((8, 30),), seed, jitter=0) for seed in range(8)]
    heat, images = batch(*scenes)
    joined = scene((32, 32, 32), ((8, 30),), 50, jitter=0)
    for split, expected in ((False, 1), (True, 3)):
        metrology = Metrology(MetrologySettings(split=split, reach=0.5, extensions=()))
        metrology.fit(heat, images)
        assert metrology.measure(*batch(joined)).number[0, 0] == expected


def test_measures_and_metrology_are_restored_from_plain_values(fitted, tmp_path):
    metrology, training = fitted
    torch.save({"metrology": metrology.state(), "training": training.state()}, tmp_path / "c.pt")
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    again, measured = Metrology.from_state(loaded["metrology"]), Measures.from_state(loaded["training"])
    heat, images = batch(scene(seed=77))
    ours, theirs = metrology.measure(heat, images), again.measure(heat, images)
    assert again.settings == metrology.settings
    assert again.report() == metrology.report()
    for name in training.groups:
        assert torch.equal(ours.groups[name].normalised, theirs.groups[name].normalised)
        assert measured.groups[name].columns == training.groups[name].columns
    assert measured.table(2) == training.table(2)
    assert measured.size == (224, 224)
    assert torch.equal(training.take([2, 5]).number, measured.number[[2, 5]])


def test_masks_are_packed_and_unpacked():
    masks = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    assert pack(masks).shape == (2, 3, 8)
    assert torch.equal(unpack(pack(masks), (7, 9)), masks)


def test_what_cannot_be_measured_is_named(fitted):
    metrology, _ = fitted
    heat, images = good(2)
    with pytest.raises(ValueError, match="call fit"):
        Metrology().measure(heat, images)
    with pytest.raises(ValueError, match="expected heat maps of 3 clusters, got 2"):
        metrology.measure(heat[:, :2], images)
    with pytest.raises(ValueError, match="do not belong together"):
        metrology.measure(heat, images[..., :100])
    with pytest.raises(ValueError, match="do not belong together"):
        metrology.measure(heat, images.float())
    with pytest.raises(ValueError, match="no pictures"):
        Metrology().fit([], [])
    with pytest.raises(ValueError, match="none of 3 clusters is a component"):
        Metrology().fit(torch.full((2, 3, 224, 224), 1 / 3), images)
    empty = torch.cat([heat, torch.zeros(2, 1, 224, 224)], dim=1)
    with pytest.raises(ValueError, match=r"clusters \[3\] are in no training picture"):
        Metrology().fit(empty, images, keep=torch.tensor([False, True, True, True]))
