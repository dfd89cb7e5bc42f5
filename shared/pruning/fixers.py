"""Numbers that layers keep about their own widths, and blocks about their parts': what they become after a cut.

Blocks are recognised by the names of their classes, so that neither diffusers nor timm has to be imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from shared.pruning.groups import GroupIndex

Attributes = dict[str, Any]


def attribute_changes(model: nn.Module, after: GroupIndex) -> dict[str, Attributes]:
    """Return the attributes that must change, by module name.

    Args:
        model: the network before the cut.
        after: the index after it.
    """
    changes: dict[str, Attributes] = {}
    for name, module in model.named_modules():
        wanted = _layer(name, module, after)
        for kind in type(module).__mro__:
            if kind.__name__ in _BLOCKS:
                wanted |= _BLOCKS[kind.__name__](name, module, after)
        if name == "" and callable(getattr(module, "get_classifier", None)):
            wanted |= _classifier(module, after)
        for path, value in wanted.items():
            owner, _, attribute = f"{name}.{path}".lstrip(".").rpartition(".")
            holder = model.get_submodule(owner) if "." in path else module
            if getattr(holder, attribute, value) != value:
                changes.setdefault(owner, {})[attribute] = value
    return changes


def _layer(name: str, module: nn.Module, after: GroupIndex) -> Attributes:
    shape = after.shapes.get(f"{name}.weight" if name else "weight", ())
    site = after.sites.get(name)
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.out_channels > 1
        groups = site.groups if depthwise and site else module.groups
        outputs, inputs = (shape[1] * groups, shape[0]) if module.transposed else (shape[0], shape[1] * groups)
        return {"out_channels": outputs, "in_channels": inputs, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if site is None:
        return {}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": site.channels, "num_groups": site.groups}
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return {"num_features": site.channels}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1:
        return {"normalized_shape": (site.channels,)}
    return {}


def _resample(name: str, module: nn.Module, after: GroupIndex) -> Attributes:
    """Return the widths of diffusers' Upsample2D or Downsample2D, which its forward pass asserts."""
    shape = after.shapes.get(f"{name}.conv.weight") or after.shapes.get(f"{name}.Conv2d_0.weight")
    if shape is None:
        return {}
    outputs, inputs = shape[:2] if not isinstance(module.conv, nn.ConvTranspose2d) else shape[1::-1]
    return {"channels": inputs, "out_channels": outputs}


def _resnet_block(name: str, module: nn.Module, after: GroupIndex) -> Attributes:
    """Return the widths of diffusers' ResnetBlock2D, and of the resampling without weights inside it."""
    inputs, outputs = after.shapes[f"{name}.conv1.weight"][1], after.shapes[f"{name}.conv2.weight"][0]
    wanted: Attributes = {"in_channels": inputs, "out_channels": outputs}
    for part in ("upsample", "downsample"):
        if isinstance(getattr(module, part, None), nn.Module):
            wanted |= {f"{part}.channels": inputs, f"{part}.out_channels": inputs}
    return wanted


def _attention(name: str, module: Any, after: GroupIndex) -> Attributes:
    """Return the numbers of diffusers' Attention (`to_q`) or timm's (`qkv`)."""
    heads = after.attentions.get(name)
    if heads is None:
        return {}
    inner = heads.heads * heads.head_dim
    if heads.style == "fused":
        return {"num_heads": heads.heads, "head_dim": heads.head_dim, "attn_dim": inner, "scale": heads.head_dim**-0.5}
    wanted: Attributes = {"heads": heads.heads, "sliceable_head_dim": heads.heads, "inner_dim": inner, "inner_kv_dim": inner}
    wanted["query_dim"] = after.shapes[f"{name}.to_q.weight"][1]
    wanted["cross_attention_dim"] = after.shapes[f"{name}.to_k.weight"][1]
    if f"{name}.to_out.0.weight" in after.shapes:
        wanted["out_dim"] = after.shapes[f"{name}.to_out.0.weight"][0]
    return wanted | ({"scale": heads.head_dim**-0.5} if getattr(module, "scale_qk", True) else {})


def _classifier(module: Any, after: GroupIndex) -> Attributes:
    """Return the feature width that a timm network tells its users."""
    head = module.get_classifier()
    name = next((name for name, other in module.named_modules() if other is head), "")
    if not isinstance(head, nn.Linear) or f"{name}.weight" not in after.shapes:
        return {}
    width = after.shapes[f"{name}.weight"][1]
    before = head.in_features
    return {attribute: width for attribute in ("num_features", "head_hidden_size", "embed_dim") if getattr(module, attribute, None) == before}


_BLOCKS: dict[str, Callable[[str, Any, GroupIndex], Attributes]] = {
    "Upsample2D": _resample,
    "Downsample2D": _resample,
    "ResnetBlock2D": _resnet_block,
    "Attention": _attention,
}
