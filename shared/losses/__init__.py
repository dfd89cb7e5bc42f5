"""Losses that several projects train with."""

from shared.losses.maps import dice_loss, iou_loss, ssim_loss

__all__ = ["dice_loss", "iou_loss", "ssim_loss"]
