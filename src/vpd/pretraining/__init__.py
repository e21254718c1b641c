"""Pre-training on synthetic scenes: a small Stable Diffusion and the baselines' backbones at a miniature scale."""
