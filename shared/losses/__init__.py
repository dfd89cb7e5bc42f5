"""Losses that several projects train with."""

from shared.losses.maps import dice_loss, iou_loss, ssim_loss
from shared.losses.margins import MarginSoftmax, aam_logits, am_logits, margin_ramp

__all__ = ["MarginSoftmax", "aam_logits", "am_logits", "dice_loss", "iou_loss", "margin_ramp", "ssim_loss"]
