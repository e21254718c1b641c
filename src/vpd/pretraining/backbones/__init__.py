"""Miniature pre-training of the baselines' backbones on drawn images, each with its family's own objective."""
