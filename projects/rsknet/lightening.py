"""Training that begins with trained weights: those of the same network, or those of a full one, factorised into its light twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from projects.rsknet.lowrank import LowRankLinear, factorise
from projects.rsknet.model import RSKNet, build_net
from projects.rsknet.remembered import known_to, other_features, refuse_known
from shared.checkpoints import describe_mismatch
from shared.layers import at_least_float32
from shared.training import evaluating

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification

HEARD = 64
"""Training crops that the batch norms of a light network's depthwise convolutions are set by."""


def begin_with(module: SpeakerVerification, checkpoint: Mapping[str, Any], path: str) -> None:
    """Load a checkpoint's network into a module that is about to train, and its classes where they are those of the data.

    Weights are loaded as they are where all fit; those of a full network are factorised for its light twin, see `lighten`.

    Args:
        module: with its trainer and its head.
        checkpoint: of a `SpeakerVerification`.
        path: where it was read, for messages.

    Raises:
        ValueError: if the weights fit in neither way; the message lists how they differ; or speakers held out, or of the trial lists, are among
            those they were trained on.
    """
    known, data = known_to(checkpoint), module.trainer.datamodule  # type: ignore[attr-defined]
    refuse_known(known, data.held_names, "speakers held out")
    refuse_known(known, data.tested_names, "speakers of the trial lists")
    if others := other_features(module, checkpoint):
        _say(f"the weights in {path} were trained with {others}, so that they are of less use")
    module.earlier = sorted(set(known) - set(module.learnt))
    weights = {name[4:]: value for name, value in checkpoint.get("state_dict", {}).items() if name.startswith("net.")}
    differences = describe_mismatch(module.net.state_dict(), weights)
    if not differences:
        module.net.load_state_dict(weights)
    else:
        full = _full_network(module, checkpoint, weights)
        if full is None or differing(full, cast(RSKNet, module.net)):
            raise ValueError(f"the weights in {path} do not fit the network (another configuration?):\n{differences}")
        lighten(full, cast(RSKNet, module.net), _crops(module))
        _say(f"the network begins with what the weights in {path} factorise into")
    _load_classes(module, checkpoint, path)


def _full_network(module: SpeakerVerification, checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> RSKNet | None:
    """Return the checkpoint's network if the module's one may be its light twin."""
    given = checkpoint.get("hyper_parameters", {})
    if not isinstance(module.net, RSKNet) or "net" not in given:
        return None
    full = build_net(given["net"], given.get("coefficients") or given["bins"], given.get("options"))
    if not isinstance(full, RSKNet) or describe_mismatch(full.state_dict(), weights):
        return None
    full.load_state_dict(weights)
    return full.eval()


def _load_classes(module: SpeakerVerification, checkpoint: Mapping[str, Any], path: str) -> None:
    """Load the rows of the head that belong to the training's speakers, at as many speeds as they have, if the checkpoint has all of them.

    A speaker's rows are as many as it has centres, so that those of another number of centres are left out.
    """
    assert module.head is not None
    known, head, wanted = list(checkpoint.get("speakers", [])), checkpoint.get("head", {}), module.head.state_dict()
    centres = checkpoint.get("hyper_parameters", {}).get("subcentres", 1)
    if known and head and set(module.learnt) <= set(known) and centres == module.head.subcentres:
        places = torch.tensor([known.index(speaker) for speaker in module.learnt])
        speeds = len(head["weight"]) // (len(known) * module.head.subcentres)
        ours = len(wanted["weight"]) // (len(places) * module.head.subcentres)
        rows = {name: value.unflatten(0, (speeds, len(known), -1))[:ours, places].flatten(0, 2) for name, value in head.items()}
        if not describe_mismatch(wanted, rows):
            module.head.load_state_dict(rows)
            return
    _say(f"the classes begin at random: those in {path} are others than the training's, or of another number of centres")


def _crops(module: SpeakerVerification) -> Tensor:
    """Return (B, F, T) features of training crops, without dither."""
    crops = module.trainer.datamodule.crops  # type: ignore[attr-defined]
    count = min(HEARD, len(crops))
    waveforms = torch.stack([crops[index * len(crops) // count]["waveform"] for index in range(count)])
    with evaluating(module), torch.no_grad():
        return module.features(waveforms.to(module.device))[0]


def differing(full: RSKNet, light: RSKNet) -> str:
    """Say in a few lines where a network is not the light twin of a full one; empty if `lighten` can make it of the other."""
    return describe_mismatch(light.state_dict(), _factorised(full, light))


@torch.no_grad()
def lighten(full: RSKNet, light: RSKNet, features: Tensor) -> None:
    """Fill a light network with what the weights of its full twin factorise into, the start of a fine-tuning.

    The embedding's matrix becomes its truncated singular value decomposition; a 3 x 3 convolution the nearest one, input channel by input channel,
    that is depthwise and then pointwise; everything else is copied. The batch norms between depthwise and pointwise, which the full network lacks,
    are set so that they change nothing, neither in evaluation nor, on these features, in training.

    Args:
        full: trained.
        light: of the same sizes but for `separable` and `rank`; overwritten.
        features: (B, F, T) training crops.

    Raises:
        ValueError: if one is not the twin of the other; the message lists how they differ.
    """
    weights = _factorised(full, light)
    if differences := describe_mismatch(light.state_dict(), weights):
        raise ValueError(f"the network is no light twin of the one that it is to begin with:\n{differences}")
    light.load_state_dict(weights)
    known = _separable(full)
    hooks = [part[1].register_forward_pre_hook(_change_nothing) for name, part in _separable(light).items() if name not in known]
    try:
        with evaluating(light):
            light(features)
    finally:
        for hook in hooks:
            hook.remove()


def separated(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the depthwise (I, 1, 3, 3) and pointwise (O, I, 1, 1) kernels whose product is nearest to a convolution (O, I, 3, 3).

    The convolution with both is sum_i p_oi d_i: for each input channel i a matrix of rank one over outputs and taps, so that the nearest is the first
    term of the singular value decomposition of W[:, i] (O x 9). Both take the root of the singular value.
    """
    outputs, inputs, *taps = weight.shape
    U, singular, Vh = torch.linalg.svd(at_least_float32(weight).transpose(0, 1).flatten(2), full_matrices=False)
    roots = singular[:, 0].sqrt()[:, None]
    depthwise, pointwise = roots * Vh[:, 0], roots * U[:, :, 0]  # (I, 9), (I, O)
    return depthwise.reshape(inputs, 1, *taps).to(weight), pointwise.T.reshape(outputs, inputs, 1, 1).to(weight)


def _factorised(full: RSKNet, light: RSKNet) -> dict[str, Tensor]:
    """Return the full network's weights in the form that the light one takes, as far as there is one."""
    weights = full.state_dict()
    if isinstance(light.embed, LowRankLinear) and isinstance(full.embed, nn.Linear):
        weights = {name: value for name, value in weights.items() if not name.startswith("embed.")}
        if (rank := light.embed.first.out_features) <= min(full.embed.weight.shape):
            weights |= {f"embed.{name}": value for name, value in factorise(full.embed, rank).state_dict().items()}
    known = _separable(full)
    for name, part in _separable(light).items():
        if name in known or f"{name}.0.weight" not in weights:
            continue
        norm = {key: weights.pop(f"{name}.1.{key}") for key in part[3].state_dict()}
        weights[f"{name}.0.weight"], weights[f"{name}.2.weight"] = separated(weights[f"{name}.0.weight"])
        weights |= {f"{name}.1.{key}": value for key, value in part[1].state_dict().items()}
        weights |= {f"{name}.3.{key}": value for key, value in norm.items()}
    return weights


def _separable(net: nn.Module) -> dict[str, nn.Sequential]:
    """Return the depthwise separable convolutions by name: depthwise, batch norm, pointwise, batch norm."""
    return {name: part for name, part in net.named_modules() if isinstance(part, nn.Sequential) and len(part) == 4}


def _change_nothing(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Set a batch norm to what leaves its (B, C, F, T) inputs as they are."""
    values = at_least_float32(inputs[0])
    mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)
    for name, value in {"running_mean": mean, "running_var": variance, "bias": mean, "weight": (variance + norm.eps).sqrt()}.items():  # type: ignore[operator]
        getattr(norm, name).copy_(value)


@rank_zero_only
def _say(remark: str) -> None:
    print(remark)
