"""That forgeries are where their masks say, leave the traces they should and no others, and that masks cannot be guessed from their place."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from projects.tripinet.forging import FORGERIES, IN_PLACE, forge, kind_at, membrane, star
from shared.data.offline import PHOTOGRAPHS
from shared.seeding import generator


def residual(image):
    """(S, S): absolute response of a second difference in both directions, smoothed over 5 pixels."""
    grey = image.float().mean(0)[None, None]
    kernel = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]])[None, None] / 4
    return F.avg_pool2d(F.conv2d(grey, kernel, padding=1).abs(), 5, 1, 2)[0, 0]


@pytest.mark.parametrize("kind", [*FORGERIES, "control", "authentic"])
def test_only_the_mask_is_changed(kind):
    for index in range(4):
        host = forge("train", index, 0, 48, "authentic")
        image, mask, name = forge("train", index, 0, 48, kind)
        assert (image.shape, image.dtype, mask.shape, mask.dtype, name) == ((3, 48, 48), torch.uint8, (1, 48, 48), torch.bool, kind)
        touched = (image != host.image).any(0, keepdim=True)
        reach = F.max_pool2d(mask.float(), 3, 1, 1).bool()  # the softened edge of what is laid in
        assert not (touched & ~(reach if kind in ("splice", "copymove") else mask)).any()
        assert touched.any() == (kind in FORGERIES)
        assert mask.any() == (kind != "authentic")
        assert torch.equal(mask, forge("train", index, 0, 48, "control").mask & (kind != "authentic"))


def test_a_picture_depends_on_its_key_alone():
    first = forge("val", 3, 5, 32, "splice")
    torch.rand(3)
    assert torch.equal(first.image, forge("val", 3, 5, 32, "splice").image)
    for other in (("test", 3, 5), ("val", 4, 5), ("val", 3, 6)):
        assert not torch.equal(first.image, forge(*other, 32, "splice").image)


def test_no_photograph_is_in_two_splits():
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    assert len(names) == len(set(names))


def test_masks_are_stars_of_the_area_they_should_have():
    for number in range(40):
        mask = star(64, generator(number))[0]
        assert 0.029 <= float(mask.float().mean()) <= 0.251


def test_masks_reach_the_border_and_cannot_be_guessed_from_their_place():
    masks = torch.stack([star(32, generator("place", number))[0] for number in range(400)]).float()
    assert masks[:, 0, 0].mean() > 0.03
    prior = masks[:300].mean(0).flatten()
    areas = [roc_auc_score(mask.flatten(), prior) for mask in masks[300:]]
    assert abs(sum(areas) / len(areas) - 0.5) < 0.1


def test_traces():
    """Noise raises the residual inside, compression, resampling and filling lower it, and the control has none."""
    signs = {}
    for kind in (*IN_PLACE, "inpaint", "control"):
        areas = []
        for index in range(8):
            image, mask, _ = forge("train", index, 1, 64, kind)
            areas.append(roc_auc_score(mask.flatten(), residual(image).flatten()))
        signs[kind] = sum(areas) / len(areas)
    assert signs["noise"] > 0.6
    assert max(signs["jpeg"], signs["resample"], signs["inpaint"]) < 0.4
    assert abs(signs["control"] - 0.5) < 0.15


def test_a_copied_patch_comes_from_the_same_picture():
    """Of a patch that is only moved, the middle is found again, pixel by pixel, elsewhere in the host."""
    found = 0
    for index in range(12):
        host = forge("train", index, 2, 64, "authentic").image.float()
        image, mask, _ = forge("train", index, 2, 64, "copymove")
        core = F.avg_pool2d(mask.float()[None], 7, 1)[0, 0] == 1  # windows of 7 pixels inside the mask
        if not core.any():
            continue
        row, column = core.nonzero()[len(core.nonzero()) // 2].tolist()
        windows = F.unfold(host[None], 7)[0]
        found += bool((windows == image[:, row : row + 7, column : column + 7].float().reshape(-1, 1)).all(0).any())
    assert 2 <= found <= 11


def test_membrane_keeps_what_is_known_and_continues_planes():
    y, x = torch.meshgrid(torch.arange(41.0), torch.arange(30.0), indexing="ij")
    plane = torch.stack([2 * y + x, 50 - x])
    hole = star(41, generator(3))[:, :, :30] | (torch.hypot(y - 20, x - 15) < 9)[None]
    filled = membrane(plane.where(~hole, float("nan")).nan_to_num(1e6), hole, sweeps=50)
    assert torch.equal(filled.masked_select(~hole), plane.masked_select(~hole))
    assert (filled - plane).abs()[:, hole[0]].mean() < 2
    for channel, source in zip(filled, plane, strict=True):
        known = source[~hole[0]]
        assert channel.min() >= known.min() - 1e-4
        assert channel.max() <= known.max() + 1e-4


def test_membrane_is_nearly_harmonic():
    chance = generator(9)
    image, hole = 255 * torch.rand(1, 24, 24, generator=chance), torch.zeros(1, 24, 24, dtype=torch.bool)
    hole[:, 8:15, 9:17] = True
    exact = image.double().clone()
    exact[hole] = 0
    for _ in range(500):  # Jacobi's iteration
        mean = (exact.roll(1, 1) + exact.roll(-1, 1) + exact.roll(1, 2) + exact.roll(-1, 2)) / 4
        exact = torch.where(hole, mean, exact)
    difference = (membrane(image, hole) - exact)[hole].abs()
    assert float(difference.mean()) < 0.1 * float(image[~hole].std())


def test_kinds_come_equally_often():
    kinds = [kind_at(index, IN_PLACE, 0.25) for index in range(120)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"authentic": 30, "noise": 30, "jpeg": 30, "resample": 30}
    assert [kind_at(index, ("noise",), 0.0) for index in range(3)] == ["noise"] * 3


@pytest.mark.parametrize(
    ("options", "message"), [({"kind": "paint"}, "choose one of noise"), ({"size": 151}, "16 to 150"), ({"size": 8}, "16 to 150")]
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        forge("train", 0, **options)
