"""What `reproduce` shows: three tables over seeds, with what was expected of them."""

from projects.umed.reproduction import ablation, baselines, protection

TABLES = {"protection": protection.TABLE, "ablation": ablation.TABLE, "baselines": baselines.TABLE}
