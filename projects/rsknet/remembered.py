"""What a checkpoint remembers of a training: by digests the speakers, so that none of them is calibrated or tested on later, and the features."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shared.checkpoints import differing_settings, load_checkpoint, with_weights

if TYPE_CHECKING:
    from projects.rsknet.module import SpeakerVerification

FEATURES = ("rate", "frame_length", "frame_shift", "window", "coefficients")
"""Settings of the module that its weights are worth nothing without, although their shapes do not tell."""
VOXCELEB1 = tuple(f"id{number}" for number in range(10001, 11252))
"""Names of the speakers of VoxCeleb1."""


def digests(speakers: Iterable[str]) -> list[str]:
    """Return 16 hexadecimal digits for each name."""
    return [hashlib.blake2b(speaker.encode(), digest_size=8).hexdigest() for speaker in speakers]


def refuse_known(known: Collection[str], speakers: Collection[str], what: str) -> None:
    """Refuse speakers whom a network has learnt from.

    Args:
        known: digests of the speakers learnt from.
        speakers: names of those at hand.
        what: what they are at hand for.

    Raises:
        ValueError: naming a few of them.
    """
    remembered, names = set(known), sorted(set(speakers))
    both = [name for name, digest in zip(names, digests(names), strict=True) if digest in remembered]
    if both:
        raise ValueError(
            f"the network was trained on {len(both)} of the {what}, such as {', '.join(both[:3])}, and would seem better than it is: take others, "
            "or the data.seed and data.held_speakers of its training; rename them if they are other people"
        )


def known_to(checkpoint: str | Mapping[str, Any]) -> list[str]:
    """Return the digests of the speakers that a network has learnt from, those of its training and of the trainings before that it began with.

    Args:
        checkpoint: path of a checkpoint, or what lies in it; none are known if it does not say.
    """
    found = load_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    return [*found.get("speakers", []), *found.get("earlier", [])]


def other_features(module: SpeakerVerification, checkpoint: Mapping[str, Any]) -> str:
    """Say which features a checkpoint's network was trained on, as far as the module would give it others; empty if they are the same."""
    heard = {name: module.hparams[name] for name in FEATURES}
    differing = differing_settings(heard, checkpoint.get("hyper_parameters", {}))
    return ", ".join(f"model.{name} {differing[name][0]}, not {differing[name][1]}" for name in FEATURES if name in differing)


def with_network(module: SpeakerVerification, ckpt_path: str | None) -> SpeakerVerification:
    """Load a checkpoint's weights into a module that is to be used as it was trained; None loads nothing. Evaluation mode.

    Raises:
        ValueError: if the module hears other features than those that the weights were trained on.
    """
    if ckpt_path is not None and (differing := other_features(module, load_checkpoint(ckpt_path))):
        raise ValueError(f"the network in {ckpt_path} was trained with {differing}: use it with the config.yaml of its run, by --config")
    return with_weights(module, ckpt_path)
