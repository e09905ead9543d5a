"""A stand-in for Slicer's Qt side, in which scripted modules run and are tested. See README.md."""

from SlicerHost.host import Host, start

__all__ = ["Host", "start"]
