"""Self-supervised objectives, one a file, and the run that trains with one."""
