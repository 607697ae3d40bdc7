"""The checks of the probe, against storages in memory that break one of them."""
