"""Pretraining of the closed-set generator: CLIP, then VAE, then U-Net, on the training split alone."""

from engine.training.pretrain.pretrain_run import pretrain

__all__ = ["pretrain"]
