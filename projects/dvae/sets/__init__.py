"""Labelled sets of images, and their form on the disk."""

from projects.dvae.sets.labelled import (
    BareSet,
    FolderSet,
    ImageSet,
    LabelledSet,
    PairedSet,
    PoisonedSet,
    identity,
    in_memory,
)
from projects.dvae.sets.stored import (
    MANIFEST,
    Format,
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
    "FolderSet",
    "Format",
    "ImageSet",
    "LabelledSet",
    "PairedSet",
    "PerturbationWriter",
    "PoisonedSet",
    "SetWriter",
    "StoredPerturbations",
    "identity",
    "in_memory",
    "read_manifest",
    "read_poisoned",
    "read_set",
]
