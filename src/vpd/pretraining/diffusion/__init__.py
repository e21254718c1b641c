"""Pre-training of a small Stable Diffusion, which ``vpd.pretrained`` turns into checkpoints."""
