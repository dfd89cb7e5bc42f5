"""Randomized smoothing: certificates from votes under noise that never claim more than was proven.

smoothed = SmoothedClassifier(network, classes=10, smoothing=Smoothing(sigmas=(0.25,), alpha=0.001), budget=Budget(draws=100_000), key=key)
for result in smoothed.certify(images):
    print(result.certificate.predicted, result.certificate.radius)
classes = smoothed.predict(images).classes                            # -1: abstains
with CertificationLog(folder, smoothed.settings | {"weights": digest}) as log:
    certify_dataset(smoothed, items, log)                             # goes on where it was killed
    table = read_table(log.merge())
print(summarise(table, [0.0, 0.25, 0.5], alpha=0.001), audit(table, sigma=0.25, draws=100_000, alpha=0.001))
"""

from shared.smoothing.alpha import AlphaPlan
from shared.smoothing.analysis import Analysis, analyze, average_certified_radius, certified_accuracy, envelope, summarise
from shared.smoothing.art import RandomizedSmoothing
from shared.smoothing.audit import Finding, audit
from shared.smoothing.audit_log import Audit, audit_file
from shared.smoothing.budget import Budget
from shared.smoothing.certificates import Certificate, Smoothing, anisotropic_radii
from shared.smoothing.denoised import Denoised, DiffusionDenoiser, denoising_loss, stability_loss
from shared.smoothing.engine import Prediction, SmoothedClassifier, certify_dataset
from shared.smoothing.fast import find_batch_size, folded
from shared.smoothing.log import CertificationLog, Row
from shared.smoothing.placement import Placed, Placement
from shared.smoothing.stream import Result, Stream
from shared.smoothing.tables import Table, read_table
from shared.smoothing.votes import Branch, LogitMean

__all__ = [
    "AlphaPlan",
    "Analysis",
    "Audit",
    "Branch",
    "Budget",
    "Certificate",
    "CertificationLog",
    "Denoised",
    "DiffusionDenoiser",
    "Finding",
    "LogitMean",
    "Placed",
    "Placement",
    "Prediction",
    "RandomizedSmoothing",
    "Result",
    "Row",
    "SmoothedClassifier",
    "Smoothing",
    "Stream",
    "Table",
    "analyze",
    "anisotropic_radii",
    "audit",
    "audit_file",
    "average_certified_radius",
    "certified_accuracy",
    "certify_dataset",
    "denoising_loss",
    "envelope",
    "find_batch_size",
    "folded",
    "read_table",
    "stability_loss",
    "summarise",
]
