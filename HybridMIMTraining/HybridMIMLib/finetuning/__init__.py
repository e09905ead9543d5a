"""Supervised training on labelled scans."""
