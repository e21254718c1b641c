"""Pre-training of small diffusion models of other families, on the autoencoder and images of the small Stable Diffusion."""
