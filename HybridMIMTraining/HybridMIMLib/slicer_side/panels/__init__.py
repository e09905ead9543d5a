"""The sections of the panel HybridMIM Segmentation, one a file; :mod:`.segmentation_panel` joins them."""
