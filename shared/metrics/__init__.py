"""Measures that several projects judge their scores by."""

from shared.metrics.curves import Roc, auroc, average_precision, eer, eer_threshold, roc, tpr_at
from shared.metrics.images import SSIM_WINDOW, ssim

__all__ = ["SSIM_WINDOW", "Roc", "auroc", "average_precision", "eer", "eer_threshold", "roc", "ssim", "tpr_at"]
