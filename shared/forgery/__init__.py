"""Face forgeries: procedural faces, the layouts that data sets are shared in, augmentation, crops, metrics and perturbations."""
