"""What `reproduce` shows: tables over seeds on forged photographs, with what was expected of them."""

from projects.tripinet.reproduction import compression, decoders, fusion, streams

TABLES = {"streams": streams.TABLE, "fusion": fusion.TABLE, "decoder": decoders.TABLE, "jpeg": compression.TABLE}
