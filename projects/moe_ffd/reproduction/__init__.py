"""What `reproduce` shows: tables over seeds on drawn faces, with what was expected of them."""

from projects.moe_ffd.reproduction import ablation, adaptations, crossover, robustness, routing

TABLES = {
    "adaptations": adaptations.TABLE,
    "crossover": crossover.TABLE,
    "ablation": ablation.TABLE,
    "routing": routing.TABLE,
    "robustness": robustness.TABLE,
}
