"""What both modules share inside Slicer: volumes, segment nodes, scenes, pictures. Never imports torch."""
