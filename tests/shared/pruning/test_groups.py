import json
from copy import deepcopy
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from shared.pruning import Budget, GroupIndex, apply, random, select
from shared.pruning.groups import from_runs, runs


def positions(index):
    """Each group as a set of (tensor, dimension, positions)."""
    return {frozenset((item.name, item.dim, tuple(item.idx.tolist())) for item in group.items) for group in index.groups.values()}


def their_positions(model, inputs):
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, inputs)
    groups = set()
    for group in graph.get_all_groups():
        entries = set()
        for dependency, idxs in group:
            name, module = graph._module2name.get(dependency.target.module), dependency.target.module
            if not name or isinstance(module, tp.ops._ElementWiseOp) or not list(getattr(module, "parameters", list)()):
                continue
            outputs = dependency.handler.__name__ == "prune_out_channels"
            both = not isinstance(module, (nn.Conv2d, nn.Linear))
            tensors = [("weight", 0 if outputs or both else 1)] + [("bias", 0)] * (outputs or both)
            tensors += [("running_mean", 0), ("running_var", 0)] if isinstance(module, nn.BatchNorm2d) else []
            entries |= {(f"{name}.{tensor}", dim, tuple(sorted(idxs))) for tensor, dim in tensors if getattr(module, tensor) is not None}
        groups.add(frozenset(entries))
    return groups


def test_groups_are_those_of_torch_pruning(unet, make):
    resnet = timm.create_model("resnet10t", num_classes=5)
    assert positions(GroupIndex.build(resnet, torch.zeros(1, 3, 32, 32))) == their_positions(resnet, torch.zeros(1, 3, 32, 32))
    assert positions(GroupIndex.build(unet, make.unet_inputs)) == their_positions(unet, make.unet_inputs)


def test_a_fused_attention_channel_is_a_query_a_key_and_a_value():
    model = timm.create_model("test_vit", num_classes=5, img_size=32)
    index = GroupIndex.build(model, torch.zeros(1, 3, 32, 32))
    group = index.groups["blocks.0.attn.qkv"]
    rows = next(item for item in group.items if item.name == "blocks.0.attn.qkv.weight")
    assert group.channels == 64
    assert rows.idx[rows.root == 5].tolist() == [5, 69, 133]
    assert not index.skipped


def test_tracing_leaves_the_network_as_it_was(net):
    net.train()
    for parameter in net.block.parameters():
        parameter.requires_grad_(False)
    before, hooks = deepcopy(net.state_dict()), [len(module._forward_hooks) for module in net.modules()]
    with torch.no_grad():
        index = GroupIndex.build(net, torch.zeros(2, 1, 8, 8))
    assert set(index.groups) == {"conv", "block.conv1", "down", "fc"}
    assert net.training
    assert not any(parameter.requires_grad for parameter in net.block.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [len(module._forward_hooks) for module in net.modules()] == hooks


def test_what_feeds_the_output_stays(index):
    assert index.groups["fc"].protected == "it feeds the output"
    assert set(index.free) == {"conv", "block.conv1", "down"}


def test_protected_layers_by_name_and_pattern(net):
    index = GroupIndex.build(net, torch.zeros(1, 1, 8, 8), protected=["block.*"])
    assert set(index.free) == {"down"}, "conv shares the residual stream with block.conv2"
    with pytest.raises(ValueError, match=r"no layer is called 'blok'; there are conv, bn"):
        index.protect(["blok"])


def test_what_cannot_be_resolved_is_skipped_with_a_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention, self.out = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.out(self.attention(x, x, x)[0])

    assert "MultiheadAttention" in GroupIndex.build(Mixed(), torch.zeros(1, 5, 4)).skipped["embed"]
    gated = GroupIndex.build(timm.create_model("test_mambaout", num_classes=5), torch.zeros(1, 3, 64, 64))
    assert "do not line up" in gated.skipped["stages.0.blocks.0.fc1"]
    assert "stages.0.blocks.0.conv" not in gated.groups


def test_json_holds_the_index(index, tmp_path):
    index.save(tmp_path / "index.json")
    content = json.loads((tmp_path / "index.json").read_text())
    again = GroupIndex.from_json(content)
    assert positions(again) == positions(index)
    assert (again.sites, again.shapes, again.uncounted) == (index.sites, index.shapes, index.uncounted)
    scores = random(index)
    assert select(again, scores, Budget(channels=0.3)).to_json() == select(index, scores, Budget(channels=0.3)).to_json()
    content["shapes"]["conv.weight"] = [1, 1, 3, 3]
    with pytest.raises(ValueError, match="its fingerprint does not fit"):
        GroupIndex.from_json(content)


def test_runs_keep_order():
    for values in ([], [3], [0, 1, 2], [5, 6, 0, 1, 9]):
        assert from_runs(runs(torch.tensor(values, dtype=torch.int64))).tolist() == values


def test_an_index_of_another_structure_is_refused(net, index):
    index.check(net)
    net.fc = nn.Linear(512, 7)
    with pytest.raises(ValueError, match=r"fc\.weight is \(7, 512\) in the network and \(10, 512\) in the index"):
        index.check(net)


def same(one, other):
    assert one.shapes == other.shapes
    assert one.attentions == other.attentions
    for name, group in other.groups.items():
        assert (one.groups[name].channels, one.groups[name].original) == (group.channels, group.original), name
        for mine, theirs in zip(one.groups[name].items, group.items, strict=True):
            assert (mine.name, mine.dim, mine.kind, mine.groups) == (theirs.name, theirs.dim, theirs.kind, theirs.groups)
            assert torch.equal(mine.idx, theirs.idx), mine.name
            assert torch.equal(mine.root, theirs.root), mine.name
    for name, site in other.sites.items():
        assert replace(one.sites[name], input_shape=()) == replace(site, input_shape=()), name


@pytest.mark.parametrize("norm", ["per_offset", "whole_group", "regroup"])
@pytest.mark.parametrize("which", ["unet", "attention_unet", "test_vit", "resnext26ts", "test_efficientnet"])
def test_a_cut_index_is_the_one_that_tracing_finds(which, norm, make, request):
    if "unet" in which:
        model, inputs = request.getfixturevalue(which), make.unet_inputs
    elif norm != "per_offset":
        pytest.skip("no group normalisation")
    else:
        model, inputs = (
            make.stir(timm.create_model(which, num_classes=5, **({"img_size": 32} if which == "test_vit" else {}))),
            torch.zeros(1, 3, 32, 32),
        )
    index = GroupIndex.build(model, inputs)
    for seed in (0, 1):  # the second cut starts from the first one's index
        index = apply(model, select(index, random(index, seed), Budget(channels=0.2), norm=norm))
        same(index, GroupIndex.build(model, inputs))
