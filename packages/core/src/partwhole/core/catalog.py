"""Every generic method as half a recipe: its options, with values for small runs on any encoder, and what it sees.

A modality adds the other half: data, encoder, views and evaluation. Its recipe of a method inherits from both, and
makes for each of ``Sees`` the batches that are described there.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from partwhole.core import methods as m
from partwhole.core.encoder import Encoder
from partwhole.core.method import Method
from partwhole.core.transformer import TransformerEncoder

Sees = Literal[
    "views", "crops", "numbered", "hiding", "masked", "kept", "named", "blocks", "labels", "guesses", "strong"
]
"""views     {"views": [x, x]}
crops     {"views": [x, x], "crops": [smaller x, ...]}
numbered  the same, with {"index": number of the thing}
hiding    the same as crops, with {"hidden": [which tokens of each view are hidden]}
masked    {"x", "hidden"}
kept      {"x", "keep": the tokens that are not hidden, as many for each thing}
named     {"x", "hidden", "ids": names of the tokens}
blocks    {"x", "keep", "targets": blocks of tokens}
labels    {"x", "label"}
guesses   {"labelled": {"x", "label"}, "unlabelled": {"x"}}
strong    {"labelled": {"x", "label"}, "unlabelled": {"views": [weakly changed x, strongly changed x]}}
"""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a method must know of the data."""

    things: int
    """How many there are without labels."""
    batch: int
    """How many of them make a step."""
    classes: int = 0
    """Of the labels."""


@dataclass(frozen=True, kw_only=True)
class SimCLR:
    """Two views of one thing attract, everything else repels (Chen et al., 2020)."""

    sees: ClassVar[Sees] = "views"
    temperature: float = 0.1
    """What cosines are divided by: the lower, the more the nearest negatives count; the higher, the more all alike."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.SimCLR(encoder, hidden=4 * encoder.dim, dim=encoder.dim, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class MoCo:
    """Find a slow teacher's embedding of the other view among many (He et al., 2020; Chen et al., 2020, 2021)."""

    sees: ClassVar[Sees] = "views"
    queue: int = 1024
    """Embeddings of former batches as negatives (more: harder); 0: those of the batch, with a predictor (version 3)."""
    temperature: float = 0.2
    """What cosines are divided by: the lower, the more the nearest negatives count; the higher, the more all alike."""
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step; rises to 1 without a queue. Higher: slower, steadier."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        d = encoder.dim
        return m.MoCo(
            encoder, queue=self.queue, hidden=4 * d, dim=d, temperature=self.temperature, momentum=self.momentum
        )


@dataclass(frozen=True, kw_only=True)
class BYOL:
    """Predict a slow teacher's embedding of the other view (Grill et al., 2020)."""

    sees: ClassVar[Sees] = "views"
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step, at first; 1 at the end. Higher: slower, steadier."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.BYOL(encoder, hidden=4 * encoder.dim, dim=encoder.dim, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class SimSiam:
    """Predict one's own embedding of the other view, held constant (Chen and He, 2021)."""

    sees: ClassVar[Sees] = "views"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.SimSiam(encoder, hidden=4 * encoder.dim, dim=4 * encoder.dim, bottleneck=encoder.dim)


@dataclass(frozen=True, kw_only=True)
class SwAV:
    """Predict from one view to which prototypes another is assigned, all used equally (Caron et al., 2020)."""

    sees: ClassVar[Sees] = "crops"
    prototypes: int = 128
    """Clusters: more are finer, and want a larger batch or queue, since all are used equally."""
    queue: int = 512
    """Embeddings of former batches that are assigned along, for batches smaller than the prototypes; 0: none."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        d = encoder.dim
        return m.SwAV(encoder, prototypes=self.prototypes, hidden=4 * d, dim=d, queue=self.queue, frozen=0.0)


@dataclass(frozen=True, kw_only=True)
class DeepCluster:
    """Predict the cluster that a thing fell into when all were last clustered (version 2, Caron et al., 2020)."""

    sees: ClassVar[Sees] = "numbered"
    prototypes: int = 32
    """Clusters in each of three clusterings, at most as many as things: more are finer."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        epoch = -(-given.things // given.batch)
        return m.DeepCluster(
            encoder, things=given.things, every=epoch, prototypes=min(self.prototypes, given.things),
            hidden=4 * encoder.dim, dim=encoder.dim,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OBoW:
    """Predict from a part which of a teacher's visual words the whole has (Gidaris et al., 2021)."""

    sees: ClassVar[Sees] = "crops"
    words: int = 512
    """Size of the vocabulary, the latest tokens of the teacher: more tell finer things apart."""
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step, at first; 1 at the end. Higher: slower, steadier."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.OBoW(encoder, words=self.words, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class BarlowTwins:
    """Each feature agrees between two views, and with no other feature (Zbontar et al., 2021)."""

    sees: ClassVar[Sees] = "views"
    redundancy: float = 0.0051
    """Weight of correlations between features: the higher, the less one repeats another, and the less views agree."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        d = 4 * encoder.dim
        return m.BarlowTwins(encoder, hidden=d, dim=d, redundancy=self.redundancy)


@dataclass(frozen=True, kw_only=True)
class VICReg:
    """Views agree, features vary and do not covary (Bardes et al., 2022)."""

    sees: ClassVar[Sees] = "views"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.VICReg(encoder, hidden=4 * encoder.dim, dim=4 * encoder.dim)


@dataclass(frozen=True, kw_only=True)
class LeJEPA:
    """Views agree, and embeddings are spread as a standard normal distribution (Balestriero and LeCun, 2025)."""

    sees: ClassVar[Sees] = "crops"
    weight: float = 0.05
    """Share of the test for normality in the loss, the rest is agreement of views. Higher: embeddings spread evenly."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.LeJEPA(encoder, hidden=4 * encoder.dim, dim=encoder.dim, weight=self.weight, slices=256)


@dataclass(frozen=True, kw_only=True)
class Assigning:
    """What DINO and those after it share: a student tells to which prototypes its teacher assigns a thing."""

    prototypes: int = 512
    """Prototypes that things, and hidden tokens, are assigned to: more tell finer ones apart, and cost memory."""
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step, at first; 1 at the end. Higher: slower, steadier."""

    def heads(self, encoder: Encoder) -> dict[str, Any]:
        d = encoder.dim
        return {"prototypes": self.prototypes, "hidden": 4 * d, "bottleneck": d, "momentum": self.momentum,
                "frozen": 0.0, "norm": "batch"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DINO(Assigning):
    """Match a slow teacher's assignment of the whole from crops of it (Caron et al., 2021)."""

    sees: ClassVar[Sees] = "crops"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.DINO(encoder, **self.heads(encoder))


@dataclass(frozen=True, kw_only=True)
class IBOT(Assigning):
    """DINO on the whole, and on the tokens that are hidden from the student (Zhou et al., 2022)."""

    sees: ClassVar[Sees] = "hiding"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.IBOT(tokens_of(encoder, self), **self.heads(encoder))


@dataclass(frozen=True, kw_only=True)
class DINOv2(Assigning):
    """iBOT with balanced targets and two heads, and vectors that keep their distance (Oquab et al., 2023)."""

    sees: ClassVar[Sees] = "hiding"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.DINOv2(tokens_of(encoder, self), **self.heads(encoder))


@dataclass(frozen=True, kw_only=True)
class DINOv3(Assigning):
    """DINOv2, whose tokens keep looking alike as they did to an earlier teacher (Simeoni et al., 2025)."""

    sees: ClassVar[Sees] = "hiding"
    momentum: float = 0.994
    """Share of its weights that the teacher keeps in a step, throughout. Higher: slower, steadier."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.DINOv3(tokens_of(encoder, self), **self.heads(encoder))


@dataclass(frozen=True, kw_only=True)
class MAE:
    """Hide most tokens and rebuild what they held (He et al., 2022)."""

    sees: ClassVar[Sees] = "kept"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.MAE(tokens_of(encoder, self), dim=max(32, encoder.dim // 2), depth=2, heads=4)


@dataclass(frozen=True, kw_only=True)
class BEiT:
    """Name the hidden tokens in a vocabulary made beforehand (Bao et al., 2022)."""

    sees: ClassVar[Sees] = "named"
    vocabulary: int = 128
    """Names of tokens: clusters of what they hold, found before training. More ask for finer detail."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.BEiT(tokens_of(encoder, self), vocabulary=self.vocabulary)


@dataclass(frozen=True, kw_only=True)
class IJEPA:
    """Predict a teacher's features of blocks from the features of what is around (Assran et al., 2023)."""

    sees: ClassVar[Sees] = "blocks"
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step, at first; 1 at the end. Higher: slower, steadier."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        narrow = max(32, encoder.dim // 2)
        return m.IJEPA(tokens_of(encoder, self), dim=narrow, depth=2, heads=4, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class Data2Vec:
    """Predict a teacher's features of the whole at the hidden tokens (Baevski et al., 2022)."""

    sees: ClassVar[Sees] = "masked"
    momentum: float = 0.99
    """Share of its weights that the teacher keeps in a step, at first; .9999 after a third. Higher: it is slower."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        tokens = tokens_of(encoder, self)
        layers = max(1, tokens.depth // 2)
        return m.Data2Vec(tokens, layers=layers, momentum=(self.momentum, 0.9999, 1 / 3))


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Name the class of each thing whose label is known: the baseline with labels."""

    sees: ClassVar[Sees] = "labels"

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.Supervised(encoder, classes=given.classes)


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """Where a teacher is sure of an unlabelled thing, its answer is the label (Lee, 2013)."""

    sees: ClassVar[Sees] = "guesses"
    threshold: float = 0.95
    """Probability from which it is sure: the higher, the fewer things are taught, and the fewer of them wrongly."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.PseudoLabel(encoder, classes=given.classes, threshold=self.threshold, momentum=0.99)


@dataclass(frozen=True, kw_only=True)
class FixMatch:
    """A sure answer on a weakly changed view is the label of a strongly changed one (Sohn et al., 2020)."""

    sees: ClassVar[Sees] = "strong"
    threshold: float = 0.95
    """Probability from which it is sure: the higher, the fewer things are taught, and the fewer of them wrongly."""

    def method(self, encoder: Encoder, given: Given) -> Method:
        return m.FixMatch(encoder, classes=given.classes, threshold=self.threshold, momentum=0.99)


def tokens_of(encoder: Encoder, recipe: object) -> TransformerEncoder:
    """The encoder, if its tokens can be hidden; TypeError if not."""
    if not isinstance(encoder, TransformerEncoder):
        raise TypeError(
            f"{type(recipe).__name__} hides tokens, and {type(encoder).__name__} has none to hide: "
            "choose a TransformerEncoder"
        )
    return encoder


METHODS = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "swav": SwAV,
    "deepcluster": DeepCluster,
    "obow": OBoW,
    "barlow": BarlowTwins,
    "vicreg": VICReg,
    "lejepa": LeJEPA,
    "dino": DINO,
    "ibot": IBOT,
    "dinov2": DINOv2,
    "dinov3": DINOv3,
    "mae": MAE,
    "beit": BEiT,
    "ijepa": IJEPA,
    "data2vec": Data2Vec,
    "supervised": Supervised,
    "pseudo-label": PseudoLabel,
    "fixmatch": FixMatch,
}
