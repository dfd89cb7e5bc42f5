"""Measures that several projects judge their scores by."""

from shared.metrics.curves import Roc, auroc, average_precision, eer, eer_threshold, roc, tpr_at

__all__ = ["Roc", "auroc", "average_precision", "eer", "eer_threshold", "roc", "tpr_at"]
