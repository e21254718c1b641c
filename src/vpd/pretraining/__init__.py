"""Pre-training of the miniature's own networks: the small Stable Diffusion and the backbones."""
