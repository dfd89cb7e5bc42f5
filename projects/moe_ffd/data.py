"""The data module: that of all projects on forged faces, with its readers and drawn faces in `shared/forgery`."""

from shared.forgery.data import ForgeryData

__all__ = ["ForgeryData"]
