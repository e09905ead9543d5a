"""Studies: does pre-training help on these scans, by how much, and at what cost."""
