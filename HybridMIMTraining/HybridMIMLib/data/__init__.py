"""Scans and label maps: finding, reading, planning, preparing, drawing crops."""
