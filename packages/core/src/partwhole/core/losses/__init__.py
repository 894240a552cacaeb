"""Losses as pure functions of tensors. No state, no collectives, no config."""

from partwhole.core.losses.contrastive import group_contrast, info_nce
from partwhole.core.losses.distillation import distill, negative_cosine
from partwhole.core.losses.masked import masked_mse

__all__ = ["distill", "group_contrast", "info_nce", "masked_mse", "negative_cosine"]
