"""Weights from elsewhere: Stable Diffusion checkpoints, backbones, the authors' released VPD models, public depth models."""
