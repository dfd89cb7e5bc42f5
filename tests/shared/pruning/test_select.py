from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared.pruning import Budget, GroupIndex, Plan, apply, magnitude, measure_latency, random, report, select
from shared.pruning.costs import ProductLedger


def even(index, value=0.0):
    return {name: torch.full((group.channels,), value) for name, group in index.groups.items()}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return counter.get_total_flops()


@pytest.fixture
def two_layers():
    """One group of 32 channels that is easy to prune, and one of 32 that is not."""
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    index = GroupIndex.build(model, torch.zeros(1, 4))
    return index, {"0": torch.arange(32.0), "2": 100 + torch.arange(32.0), "4": torch.zeros(4)}


def test_defect_3_the_cap_holds_within_one_step(two_layers):
    index, scores = two_layers
    plan = select(index, scores, Budget(channels=0.45), cap=0.5)
    assert {name: len(channels) for name, channels in plan.dropped.items()} == {"0": 16, "2": 13}
    assert plan.notes == ["0 is at its cap or floor"]
    assert len(select(index, scores, Budget(channels=0.45), cap=1.0, floor=3).dropped["0"]) == 29


def test_the_cap_counts_what_went_before(net):
    index = GroupIndex.build(net, torch.zeros(1, 1, 8, 8))
    for _ in range(3):
        index = apply(net, select(index, even(index), Budget(channels=0.4), cap=0.5))
    assert [group.channels for group in index.free.values()] == [8, 8, 16]
    again = GroupIndex.build(net, torch.zeros(1, 1, 8, 8))
    assert not select(again, even(again), Budget(channels=0.3), cap=0.5).dropped


def test_defect_4_rounding_goes_to_the_nearest_multiple():
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))
    index = GroupIndex.build(model, torch.zeros(1, 4))
    for share, kept in ((0.1, 32), (0.3, 16), (0.6, 16), (0.24, 32), (0.26, 16)):
        plan = select(index, even(index), Budget(channels=share), round_to=16, cap=1.0)
        assert 32 - plan.channels == kept, share
    assert 32 - select(index, even(index), Budget(channels=0.2), round_to=8).channels == 24
    assert select(index, even(index), Budget(channels=0.45), round_to=32, cap=1.0).channels == 0, "never to nothing"


def test_round_to_leaves_multiples_everywhere_and_meets_the_budget():
    model = timm.create_model("resnet10t", num_classes=5)
    index = GroupIndex.build(model, torch.zeros(1, 3, 32, 32))
    plan = select(index, random(index), Budget(channels=0.3), round_to=16)
    kept = [group.channels - len(plan.dropped[name]) for name, group in index.groups.items() if name in plan.dropped]
    assert all(channels % 16 == 0 for channels in kept)
    assert abs(plan.channels - 0.3 * sum(group.channels for group in index.free.values())) <= 16


def test_defect_5_ties_go_by_index_and_never_too_many(index):
    plan = select(index, even(index), Budget(channels=0.25))
    assert {name: channels.tolist() for name, channels in plan.dropped.items()} == {"conv": list(range(8)), "block.conv1": list(range(8))}
    assert plan.channels == 16
    local = select(index, even(index), Budget(channels=0.25), scope="local")
    assert {name: channels.tolist() for name, channels in local.dropped.items()} == {
        "conv": [0, 1, 2, 3],
        "block.conv1": [0, 1, 2, 3],
        "down": [0, 1, 2, 3, 4, 5, 6, 7],
    }
    assert select(index, even(index), Budget(channels=0.25)).to_json() == plan.to_json()


@pytest.mark.parametrize("norm", ["per_offset", "whole_group", "regroup"])
@pytest.mark.parametrize("measure", ["channels", "parameters", "flops"])
def test_budgets_are_met_within_one_unit(norm, measure, unet, make):
    index = GroupIndex.build(unet, make.unet_inputs)
    scores = magnitude(index, unet)
    budget = Budget(**{measure: 0.3})
    plan = select(index, scores, budget, norm=norm)
    totals = report(plan).totals[measure]
    removed, target = totals["before"] - totals["after"], 0.3 * totals["before"]
    ledger, largest = budget.ledger(index), 0.0
    from shared.pruning.units import smallest_units

    for group in index.free.values():
        largest = max([largest, *(ledger.cost(group.name, unit) for unit in smallest_units(index, group, norm, "within"))])
    assert abs(removed - target) <= largest / 2 + 1e-6
    before = {"parameters": count(unet), "flops": flops(unet, make.unet_inputs)}
    apply(unet, plan)
    after = {"parameters": count(unet), "flops": flops(unet, make.unet_inputs)}
    for name in before:
        assert report(plan).totals[name] == {"before": before[name], "after": after[name]}


def test_defect_9_flops_count_attention(attention_unet, make):
    index = GroupIndex.build(attention_unet, make.unet_inputs)
    assert ProductLedger(index, "flops").total() == flops(attention_unet, make.unet_inputs)
    plan = select(index, random(index), Budget(flops=0.3))
    apply(attention_unet, plan)
    assert report(plan).totals["flops"]["after"] == flops(attention_unet, make.unet_inputs)


def test_defect_6_group_normalisation_in_three_ways(unet, make):
    index = GroupIndex.build(unet, make.unet_inputs)
    name, norm = "mid_block.resnets.0.conv1", "mid_block.resnets.0.norm2"
    only, free = {name: torch.arange(32.0)}, sum(group.channels for group in index.free.values())
    sizes = {mode: select(index, only, Budget(channels=4 / free), norm=mode).dropped[name].tolist() for mode in ("per_offset", "regroup")}
    assert sizes["per_offset"] == [0, 8, 16, 24], "the same offset of each of the four groups"
    assert sizes["regroup"] == [0, 1, 2, 3]
    plan = select(index, only, Budget(channels=8 / free), norm="whole_group")
    assert plan.dropped[name].tolist() == list(range(8))
    pruned = deepcopy(unet)
    after = apply(pruned, plan)
    assert after.sites[norm].groups == 3
    x = torch.randn(2, 32, 4, 4)
    kept = pruned.get_submodule(norm)(x[:, 8:])
    torch.testing.assert_close(kept, unet.get_submodule(norm)(x)[:, 8:], msg="the other groups' statistics are unchanged")


def test_plans_leave_the_network_alone(unet, make):
    before = deepcopy(unet.state_dict())
    index = GroupIndex.build(unet, make.unet_inputs)
    str(report(select(index, magnitude(index, unet), Budget(flops=0.4))))
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_density_spares_what_is_cheap():
    model = nn.Sequential(nn.Linear(100, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 2))
    index = GroupIndex.build(model, torch.zeros(1, 100))
    by_score = select(index, {"0": torch.full((10,), 1.1), "2": torch.full((10,), 1.0)}, Budget(parameters=0.1))
    by_density = select(index, {"0": torch.full((10,), 1.1), "2": torch.full((10,), 1.0)}, Budget(parameters=0.1), order="density")
    assert "2" in by_score.dropped
    assert list(by_density.dropped) == ["0"]
    assert by_density.channels == 1


def test_scopes(index):
    scores = {name: value + i for i, (name, value) in enumerate(even(index).items())}
    assert set(select(index, scores, Budget(channels=0.2)).dropped) == {"conv", "block.conv1"}
    assert set(select(index, scores, Budget(channels=0.2), scope="local").dropped) == {"conv", "block.conv1", "down"}
    own = select(index, scores, Budget(channels=0.5), scope={"conv": "a", "down": "a"})
    assert {name: len(channels) for name, channels in own.dropped.items()} == {"conv": 8, "block.conv1": 8, "down": 16}
    assert index.groups["block.conv1"].topology == index.groups["down"].topology == "in:1 norm:1 out:1"
    alike = select(index, scores, Budget(channels=0.25), scope="isomorphic")
    assert {name: len(channels) for name, channels in alike.dropped.items()} == {"conv": 4, "block.conv1": 8, "down": 4}
    assert len(select(index, scores, Budget(channels=0.01), scope="local", at_least=1).dropped) == 3
    with pytest.raises(ValueError, match="a budget in flops is one sum over the network"):
        select(index, scores, Budget(flops=0.2), scope="local")
    with pytest.raises(ValueError, match="at_least counts units in each group"):
        select(index, scores, Budget(channels=0.2), at_least=1)


def test_masks_need_no_units(unet, make):
    index = GroupIndex.build(unet, make.unet_inputs)
    plan = select(index, random(index), Budget(channels=0.06), scope="local", at_least=1, mode="mask")
    assert all(len(plan.dropped[name]) == max(1, round(0.06 * group.channels)) for name, group in index.free.items())
    made = report(plan)
    assert made.totals["channels"]["before"] == sum(group.channels for group in index.free.values())
    assert sum(row["parameters_after"] for row in made.layers) == made.totals["parameters"]["after"], "what removal would save"


def test_whole_heads_and_within_heads():
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    index = GroupIndex.build(model, torch.zeros(1, 3, 32, 32))
    scores = {"blocks.0.attn.qkv": torch.arange(64.0)}
    free = sum(group.channels for group in index.free.values())
    width = index.attentions["blocks.0.attn"].head_dim
    whole = select(index, scores, Budget(channels=width / free), heads="whole").dropped["blocks.0.attn.qkv"]
    assert whole.tolist() == list(range(width))
    within = select(index, scores, Budget(channels=2 / free), heads="within").dropped["blocks.0.attn.qkv"]
    assert within.tolist() == [0, width]


def test_a_budget_that_caps_forbid_is_reported(index):
    plan = select(index, even(index), Budget(channels=0.8), cap=0.25)
    assert plan.channels == 16
    assert plan.notes[0] == "all groups: caps, floors and units allow 16 of the 51.2 channels asked for"
    assert "note: all groups: caps, floors" in str(report(plan))


def test_latency_budgets(net, index):
    table = measure_latency(index, net, shares=(0.5, 1.0), rounds=2)
    assert set(table) == {"conv", "block.conv1", "block.conv2", "down", "fc"}
    seconds = {name: {"inputs": [1.0], "outputs": [0.0, 64.0], "seconds": [[0.0, 64e-3]]} for name in ("block.conv1", "down")}
    plan = select(index, random(index), Budget(latency=0.25, table=seconds))
    totals = report(plan, seconds).totals["seconds"]
    assert totals["before"] == pytest.approx(48e-3)
    assert totals["after"] == pytest.approx(36e-3, abs=0.5e-3)


def test_reports_say_what_goes(index, net):
    plan = select(index, magnitude(index, net), Budget(channels=0.3), protected=["down"])
    made = report(plan)
    rows = {row["group"]: row for row in made.groups}
    assert rows["down"]["protected"] == "down is protected"
    assert rows["conv"]["before"] - rows["conv"]["after"] == len(plan.dropped["conv"])
    assert rows["conv"]["dropped_scores"][2] <= rows["conv"]["kept_scores"][0]
    assert {row["type"] for row in made.layers} == {"Conv2d", "BatchNorm2d", "Linear"}
    text = str(made)
    assert "stays: it feeds the output" in text
    assert "share removed" in text
    assert made.to_json()["totals"]["activations"]["after"] < made.to_json()["totals"]["activations"]["before"]


def test_wrong_requests_are_refused(index):
    for wrong, message in (
        ({"channels": 0.1, "flops": 0.1}, "sets one of channels, parameters, flops and latency, got channels, flops"),
        ({}, "got none"),
        ({"channels": 1.0}, r"share to remove, in \[0, 1\), got channels=1.0"),
        ({"latency": 0.1}, "make one with measure_latency"),
    ):
        with pytest.raises(ValueError, match=message):
            Budget(**wrong)
    with pytest.raises(ValueError, match="cap must lie in"):
        select(index, even(index), Budget(channels=0.1), cap=1.5)
    with pytest.raises(ValueError, match="the scores of conv are not all finite numbers"):
        select(index, even(index, float("nan")), Budget(channels=0.1))
    with pytest.raises(ValueError, match="no group 'cnv'; there are conv"):
        Plan.of(index, {"cnv": [1]})
    with pytest.raises(ValueError, match="fc must stay whole: it feeds the output"):
        Plan.of(index, {"fc": [1]})
    with pytest.raises(ValueError, match="conv would lose all of its 16 channels"):
        Plan.of(index, {"conv": range(16)})
    with pytest.raises(ValueError, match="conv has channels 0 to 15"):
        Plan.of(index, {"conv": [16]})


def test_plans_are_json(index, tmp_path):
    plan = select(index, random(index), Budget(channels=0.3))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.to_json() == plan.to_json()
