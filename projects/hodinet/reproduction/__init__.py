"""The tables of `reproduce`, by name."""

from projects.hodinet.reproduction import decoders, encoders, fusion, modality, noise, placement

TABLES = {
    "modality": modality.TABLE,
    "fusion": fusion.TABLE,
    "encoders": encoders.TABLE,
    "placement": placement.TABLE,
    "noise": noise.TABLE,
    "decoder": decoders.TABLE,
}
