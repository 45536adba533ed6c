"""Compare debiasing methods for image diffusion models under one protocol."""
