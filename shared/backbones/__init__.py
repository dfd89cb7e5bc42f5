"""Networks that several projects build on."""
