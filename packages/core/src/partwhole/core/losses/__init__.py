"""Losses as pure functions of tensors: local means, no state, no collectives, no config.

A method multiplies a loss by ``distributed.share(n)``, n the number of items that its mean is over:

info_nce         queries that have a positive     keys gathered by the method
negative_cosine  rows
distill          things (B)
masked_mse       hidden tokens
masked_smooth_l1 hidden tokens
masked_cross_entropy  hidden tokens
group_info_nce   tokens of known group
group_contrast   pairs (``group_pairs``), and the fraction of positives of the whole batch given
"""

from partwhole.core.losses.clustering import sinkhorn
from partwhole.core.losses.contrastive import info_nce
from partwhole.core.losses.distillation import distill, negative_cosine
from partwhole.core.losses.grouping import group_contrast, group_info_nce, group_means, group_pairs
from partwhole.core.losses.masked import masked_cross_entropy, masked_mse, masked_smooth_l1

__all__ = [
    "distill",
    "group_contrast",
    "group_info_nce",
    "group_means",
    "group_pairs",
    "info_nce",
    "masked_cross_entropy",
    "masked_mse",
    "masked_smooth_l1",
    "negative_cosine",
    "sinkhorn",
]
