"""The tables of `reproduce`, by name."""

from projects.rsknet.reproduction import conditions, lag, sizes, speakers, untrained

TABLES = {
    "lag": lag.TABLE,
    "speakers": speakers.TABLE,
    "conditions": conditions.TABLE,
    "calibration": conditions.CALIBRATION,
    "sizes": sizes.TABLE,
    "pooling": untrained.TABLE,
    "powered": speakers.POWERED,
}
