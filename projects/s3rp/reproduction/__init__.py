"""The tables of `reproduce`, by name."""

from projects.s3rp.reproduction import forecast, resolution, rivals, solver, uncertainty

TABLES = {
    "resolution": resolution.TABLE,
    "rivals": rivals.TABLE,
    "oracles": rivals.ORACLE,
    "uncertainty": uncertainty.TABLE,
    "forecast": forecast.TABLE,
    "solver": solver.TABLE,
}
