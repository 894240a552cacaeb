"""Losses as pure functions of tensors: local means, no state, no collectives, no config.

A method multiplies a loss by ``distributed.share(n)``, n the number of items that its mean is over:

info_nce             queries that have a positive     keys gathered by the method
nt_xent              rows of all views                keys gathered by the method
sigmoid_contrast     queries                          keys gathered by the method
negative_cosine      rows
distill              things (B)
masked_distill       things (B)
masked_mse           hidden tokens
masked_cross_entropy hidden tokens
linear_cross_entropy valid rows
group_info_nce       tokens of known group
group_contrast       pairs (``group_pairs``), and the fraction of positives of the whole batch given
koleo                rows, keys gathered by the method
gram_anchoring       pairs of real tokens of a thing; ``across`` things nothing, all tokens gathered by the method
"""

from partwhole.core.losses.clustering import bag_of_words, sinkhorn
from partwhole.core.losses.contrastive import info_nce, nt_xent, sigmoid_contrast
from partwhole.core.losses.distillation import distill, masked_distill, negative_cosine
from partwhole.core.losses.grouping import group_contrast, group_info_nce, group_means, group_pairs
from partwhole.core.losses.masked import linear_cross_entropy, masked_cross_entropy, masked_mse
from partwhole.core.losses.regularising import gram_anchoring, koleo

__all__ = [
    "bag_of_words",
    "distill",
    "gram_anchoring",
    "group_contrast",
    "group_info_nce",
    "group_means",
    "group_pairs",
    "info_nce",
    "koleo",
    "linear_cross_entropy",
    "masked_cross_entropy",
    "masked_distill",
    "masked_mse",
    "negative_cosine",
    "nt_xent",
    "sigmoid_contrast",
    "sinkhorn",
]
