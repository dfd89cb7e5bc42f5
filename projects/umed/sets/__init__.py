from projects.umed.sets.base import IN_MEMORY, MaskedSet, SegmentationSet, identity, in_memory
from projects.umed.sets.files import FileSet, Item, OnBadFile, PictureItem
from projects.umed.sets.masks import MaskCode, mask_code, read_mask
from projects.umed.sets.originals import Original
from projects.umed.sets.splits import choose_groups, join_duplicates, perceptual_hash, split_groups

__all__ = [
    "IN_MEMORY",
    "FileSet",
    "Item",
    "MaskCode",
    "MaskedSet",
    "OnBadFile",
    "Original",
    "PictureItem",
    "SegmentationSet",
    "choose_groups",
    "identity",
    "in_memory",
    "join_duplicates",
    "mask_code",
    "perceptual_hash",
    "read_mask",
    "split_groups",
]
