"""Labelled sets of images, and their form on the disk."""

from projects.dvae.sets.labelled import (
    BareSet,
    Choice,
    FolderSet,
    ImageSet,
    LabelledSet,
    PairedSet,
    Pattern,
    PoisonedSet,
    choose_poisoned,
    identity,
    in_memory,
)
from projects.dvae.sets.stored import (
    MANIFEST,
    PerturbationWriter,
    SetWriter,
    StoredPerturbations,
    read_manifest,
    read_poisoned,
    read_set,
)

__all__ = [
    "MANIFEST",
    "BareSet",
    "Choice",
    "FolderSet",
    "ImageSet",
    "LabelledSet",
    "PairedSet",
    "Pattern",
    "PerturbationWriter",
    "PoisonedSet",
    "SetWriter",
    "StoredPerturbations",
    "choose_poisoned",
    "identity",
    "in_memory",
    "read_manifest",
    "read_poisoned",
    "read_set",
]
