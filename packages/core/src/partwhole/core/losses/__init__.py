"""Losses as pure functions of tensors: local means, no state, no collectives, no config.

A method multiplies a loss by ``distributed.share(n)``, n the number of items that its mean is over:

info_nce             queries that have a positive  keys gathered by the method
nt_xent              rows of all views  keys gathered by the method
sigmoid_contrast     queries  keys gathered by the method
negative_cosine      rows
distill              things (B)
masked_distill       things (B)
masked_mse           hidden tokens
masked_smooth_l1     hidden tokens
masked_cross_entropy hidden tokens
linear_cross_entropy valid rows
cross_entropy        things of known label
soft_cross_entropy   things
consistency          things that count, sure or not
group_info_nce       tokens of known group
group_contrast       pairs (``group_pairs``), and the fraction of positives of the whole batch given
koleo                rows, keys gathered by the method
gram_anchoring       pairs of real tokens of a thing; ``across`` things nothing, all tokens gathered by the method
barlow               nothing: rows of all processes are given, and every process has the whole loss
vicreg               likewise
sigreg               likewise, and the same directions everywhere
"""

from partwhole.core.losses.clustering import bag_of_words, sinkhorn
from partwhole.core.losses.contrastive import info_nce, nt_xent, sigmoid_contrast
from partwhole.core.losses.distillation import distill, masked_distill, negative_cosine
from partwhole.core.losses.grouping import group_contrast, group_info_nce, group_means, group_pairs
from partwhole.core.losses.labels import consistency, cross_entropy, soft_cross_entropy
from partwhole.core.losses.masked import linear_cross_entropy, masked_cross_entropy, masked_mse, masked_smooth_l1
from partwhole.core.losses.redundancy import barlow, sigreg, vicreg
from partwhole.core.losses.regularising import gram_anchoring, koleo

__all__ = [
    "bag_of_words",
    "barlow",
    "consistency",
    "cross_entropy",
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
    "masked_smooth_l1",
    "negative_cosine",
    "nt_xent",
    "sigmoid_contrast",
    "sigreg",
    "sinkhorn",
    "soft_cross_entropy",
    "vicreg",
]
