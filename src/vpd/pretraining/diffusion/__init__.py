"""Pre-training of a small Stable Diffusion: autoencoder, text encoder, and the denoiser on what both encode."""
