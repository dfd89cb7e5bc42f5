"""Trays hold what their kind says, where it says so, and masks and components agree with what is drawn."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from projects.comad.defects import CONFIG, read_config
from projects.comad.drawing import COMPONENTS
from projects.comad.traysim import COUNTS, LOGICAL, STRUCTURAL, defect_types, draw_tray, write_loco

KINDS = ("good", *LOGICAL, *STRUCTURAL)
TRAYS = 8
NUMBER = {name: number for number, name in enumerate(COMPONENTS)}


@pytest.fixture(scope="module")
def trays():
    return {kind: [draw_tray("test", index, kind) for index in range(TRAYS)] for kind in KINDS}


def pieces(tray):
    """Count what is connected, by an independent library."""
    return {sort: ndimage.label((tray.components == NUMBER[sort]).numpy(), np.ones((3, 3)))[1] for sort in COUNTS}


def quarters(tray, name):
    """Say in which compartments a component lies."""
    inside = tray.components == NUMBER[name]
    parts = {"fruit": inside[:64, :64], "pin": inside[:64, 64:], "ring": inside[64:, :64], "grain": inside[64:, 64:]}
    return {place for place, part in parts.items() if part.any()}


def height(tray):
    """Return the height of the grain in parts of its compartment's 58 pixels."""
    return (tray.components == NUMBER["grain"]).any(1).sum().item() / 58


def test_a_tray_has_its_shapes_and_types(trays):
    for kind in KINDS:
        tray = trays[kind][0]
        assert (tray.image.shape, tray.image.dtype) == ((3, 128, 128), torch.uint8)
        assert (tray.components.shape, tray.components.dtype) == ((128, 128), torch.uint8)
        assert tray.kind == kind
        assert all((defect.mask.shape, defect.mask.dtype) == ((128, 128), torch.bool) for defect in tray.defects)


def test_a_tray_is_a_function_of_its_place(trays):
    again = draw_tray("test", 3, "missing")
    assert torch.equal(again.image, trays["missing"][3].image)
    assert torch.equal(again.defects[0].mask, trays["missing"][3].defects[0].mask)
    others = [
        draw_tray("validation", 3, "missing"),
        draw_tray("test", 4, "missing"),
        draw_tray("test", 3, "missing", seed=1),
        draw_tray("test", 3, "extra"),
    ]
    assert not any(torch.equal(other.components, again.components) for other in others)


def test_global_randomness_has_no_part_in_a_tray(trays):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(draw_tray("test", 0, "paint").image, trays["paint"][0].image)
    assert torch.equal(torch.get_rng_state(), state)


def test_good_trays_hold_two_oranges_an_apple_three_pins_two_rings_and_grain_to_six_tenths(trays):
    for tray in trays["good"] + trays["scratch"] + trays["paint"]:
        assert pieces(tray) == {"orange": 2, "apple": 1, "pin": 3, "ring": 2}
        assert [quarters(tray, sort) for sort in ("orange", "apple", "pin", "ring", "grain")] == [{"fruit"}, {"fruit"}, {"pin"}, {"ring"}, {"grain"}]
        assert height(tray) == pytest.approx(0.6, abs=0.05)
    assert all(not tray.defects and not tray.altered for tray in trays["good"])


@pytest.mark.parametrize(("kind", "change"), [("missing", -1), ("extra", 1)])
def test_one_piece_of_a_random_sort_is_missing_or_too_many(trays, kind, change):
    for tray in trays[kind]:
        (sort,) = tray.altered
        assert pieces(tray) == {**COUNTS, sort: COUNTS[sort] + change}
        assert tray.defects[0].name == f"{kind}_{sort}"


def test_a_wrong_mix_is_three_and_none_or_one_and_two(trays):
    mixes = {(pieces(tray)["orange"], pieces(tray)["apple"]) for tray in trays["wrongmix"]}
    assert mixes == {(3, 0), (1, 2)}


def test_swapped_trays_have_pins_and_rings_in_each_others_place_and_two_defects(trays):
    for tray in trays["swap"]:
        assert pieces(tray) == COUNTS
        assert (quarters(tray, "pin"), quarters(tray, "ring")) == ({"ring"}, {"pin"})
        assert [defect.name for defect in tray.defects] == ["misplaced_pins", "misplaced_rings"]


def test_wrong_fills_are_thirty_or_ninety_per_cent_and_the_mask_is_what_lies_between(trays):
    levels = []
    for tray in trays["fill"]:
        levels.append(min((0.3, 0.9), key=lambda level, tray=tray: abs(level - height(tray))))
        assert height(tray) == pytest.approx(levels[-1], abs=0.05)
        assert tray.defects[0].mask.sum().item() == pytest.approx(0.3 * 58 * 58, rel=0.05)
        assert tray.defects[0].name == ("fill_too_low" if levels[-1] == 0.3 else "fill_too_high")
    assert set(levels) == {0.3, 0.9}


def test_a_piece_among_several_saturates_at_the_area_of_one(trays):
    for tray in trays["missing"] + trays["extra"]:
        (defect,) = tray.defects
        one = (tray.components == NUMBER[tray.altered[0]]).sum().item() / max(1, pieces(tray)[tray.altered[0]])
        assert not defect.type.is_relative
        assert defect.mask.sum() > defect.saturation
        if one:
            assert defect.saturation == pytest.approx(one, rel=0.12)
    for tray in trays["swap"] + trays["fill"] + trays["scratch"] + trays["paint"]:
        assert all(defect.saturation == defect.mask.sum() for defect in tray.defects)


def test_scratches_and_paint_look_foreign_and_their_masks_say_where(trays):
    for tray in trays["scratch"]:
        mask = tray.defects[0].mask
        assert 20 < mask.sum() < 120, "thin"
        ring = (torch.nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0] > 0) & ~mask
        assert tray.image[:, mask].float().mean() < 0.6 * tray.image[:, ring].float().mean(), "dark"
    for tray in trays["paint"]:
        red, green, blue = tray.image[:, tray.defects[0].mask].float().mean(1).tolist()
        assert blue > 130
        assert blue > min(red, green) + 60
    below = COMPONENTS[trays["paint"][0].components[trays["paint"][0].defects[0].mask].long().bincount().argmax()]
    assert trays["paint"][0].altered[0] == below


@pytest.mark.parametrize("name", ["grain", "floor"])
def test_scratches_and_paint_may_be_confined_to_a_component(name):
    for kind in STRUCTURAL:
        tray = draw_tray("test", 1, kind, on=name)
        assert tray.altered == (name,)
        assert (tray.components[tray.defects[0].mask] == NUMBER[name]).all()
        assert tray.defects[0].mask.sum() > 10
        near = torch.nn.functional.max_pool2d(tray.defects[0].mask[None].float(), 9, 1, 4)[0] > 0
        assert (tray.components[near] == NUMBER[name]).all()


def test_light_changes_by_four_per_cent_and_colours_stay_apart(trays):
    many = [draw_tray("train", index) for index in range(12)]
    means = {name: torch.stack([tray.image[:, tray.components == NUMBER[name]].float().mean(1) for tray in many]) for name in COMPONENTS}
    middles = {name: values.mean(0) for name, values in means.items()}
    for name, values in means.items():
        assert (values / middles[name] - 1).abs().max() < 0.04 + 0.03 * 255 / middles[name].min() + 0.02
        assert all((middles[name] - middles[other]).norm() > 40 for other in COMPONENTS if other != name)


def test_larger_trays_show_the_same_scene(trays):
    small, large = trays["extra"][2], draw_tray("test", 2, "extra", size=224)
    assert large.image.shape == (3, 224, 224)
    assert (large.altered, pieces(large)) == (small.altered, pieces(small))
    enlarged = torch.nn.functional.interpolate(small.components[None, None].float(), size=(224, 224), mode="nearest-exact")[0, 0]
    assert (enlarged == large.components).float().mean() > 0.96


def test_the_types_of_defects_have_values_of_their_own():
    types = defect_types(224)
    values = [each.pixel_value for each in types.values()]
    assert len(set(values)) == len(values)
    assert all(0 < value < 256 for value in values)
    assert types["missing_pin"].threshold == pytest.approx(defect_types(128)["missing_pin"].threshold * (224 / 128) ** 2, rel=0.02)
    kinds = ("missing", "extra", "wrongmix", "fill", "scratch", "paint")
    names = {draw_tray("test", index, kind, size=64).defects[0].name for kind in kinds for index in range(24 if kind in kinds[:2] else 6)}
    assert names | {"misplaced_pins", "misplaced_rings"} == set(types)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bad"}, "kind"),
        ({"size": 32}, "size"),
        ({"index": -1}, "index"),
        ({"split": "val"}, "split"),
        ({"kind": "paint", "on": "pin"}, "on must"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_tray(**{"split": "train", "index": 0, **options})


def test_trays_are_written_in_the_layout_of_loco(tmp_path, trays):
    folder = write_loco(tmp_path, length=3, val_length=2, test_length=2, kinds=["swap", "missing", "paint"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert found == {
        *(f"train/good/{number:03}.png" for number in range(3)),
        *(f"{split}/good/{number:03}.png" for split in ("validation", "test") for number in range(2)),
        *(f"test/logical_anomalies/{number:03}.png" for number in range(4)),
        *(f"test/structural_anomalies/{number:03}.png" for number in range(2)),
        *(f"ground_truth/logical_anomalies/{number:03}/000.png" for number in range(4)),
        *(f"ground_truth/logical_anomalies/{number:03}/001.png" for number in (2, 3)),
        *(f"ground_truth/structural_anomalies/{number:03}/000.png" for number in range(2)),
    }
    with Image.open(folder / "test/logical_anomalies/003.png") as picture:
        assert np.array_equal(np.asarray(picture), trays["swap"][1].image.permute(1, 2, 0).numpy())
    types = read_config(folder / CONFIG)
    assert {each.name: each for each in types.values()} == defect_types()
    for place, defect in enumerate(trays["swap"][1].defects):
        with Image.open(folder / f"ground_truth/logical_anomalies/003/{place:03}.png") as mask:
            levels = np.asarray(mask)
        assert set(np.unique(levels)) == {0, defect.type.pixel_value}
        assert np.array_equal(levels > 0, defect.mask.numpy())


def test_only_what_was_written_before_is_replaced(tmp_path):
    write_loco(tmp_path, length=1, val_length=1, test_length=1, kinds=["paint"], size=64)
    write_loco(tmp_path, length=2, val_length=1, test_length=1, kinds=["paint"], size=64)
    assert len(list((tmp_path / "traysim/train/good").iterdir())) == 2
    (tmp_path / "other/traysim").mkdir(parents=True)
    (tmp_path / "other/traysim/mine.txt").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        write_loco(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
