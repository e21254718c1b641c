"""Measures of the small Stable Diffusion: what it draws, how real that looks, where its words point, whether text matters."""
