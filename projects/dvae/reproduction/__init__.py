"""What `reproduce` shows: five tables over seeds, with what was expected of them."""

from projects.dvae.reproduction import ablation, detection, rates, separation, textures

TABLES = {
    "separation": separation.TABLE,
    "rates": rates.TABLE,
    "ablation": ablation.TABLE,
    "detection": detection.TABLE,
    "textures": textures.TABLE,
}
