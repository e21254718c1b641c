"""VPD, "Unleashing Text-to-Image Diffusion Models for Visual Perception" (ICCV 2023), as one workflow."""

__version__ = "0.1.0"
