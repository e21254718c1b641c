"""Miniature pre-training of the baselines' backbones on synthetic scenes, each by the objective of its published weights."""
