"""Captions, CLIP features and class statistics, computed once for each training image."""
