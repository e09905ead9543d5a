"""The sections of the settings, one a file, and what they are made of (:mod:`.tree`, :mod:`.checks`)."""
