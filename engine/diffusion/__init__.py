"""Diffusion checkpoints and how to sample from them; torch and diffusers only, no Ray."""
