"""Layers that several projects build on."""

from shared.layers.precision import at_least_float32
from shared.layers.residuals import BayarConv2d, SRMResidual, srm_kernels

__all__ = ["BayarConv2d", "SRMResidual", "at_least_float32", "srm_kernels"]
