"""Pre-training of a small Stable Diffusion, which ``vpd.weights`` turns into checkpoints."""
