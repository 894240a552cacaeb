"""Every generic method as half a recipe: its options, with values for small runs on any encoder, and what it sees.

A modality adds the other half: data, encoder, views and evaluation. Its recipe of a method inherits from both, and
makes for each of ``Sees`` the batches that are described there.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from partwhole.core.encoder import Encoder
from partwhole.core.method import Method
from partwhole.core.methods.byol import BYOL as ByolMethod
from partwhole.core.methods.dino import DINO as DinoMethod
from partwhole.core.methods.mae import MAE as MaeMethod
from partwhole.core.methods.simclr import SimCLR as SimclrMethod
from partwhole.core.transformer import TransformerEncoder

Sees = Literal["views", "crops", "masked"]
"""views: {"views": [x, x]}; crops: the same with {"crops": [smaller x, ...]}; masked: {"x", "hidden"}."""


@dataclass(frozen=True, kw_only=True)
class SimCLR:
    """Two views of one thing attract, everything else repels (Chen et al., 2020)."""

    sees: ClassVar[Sees] = "views"
    temperature: float = 0.1
    """Of the contrast."""

    def method(self, encoder: Encoder) -> Method:
        return SimclrMethod(encoder, hidden=4 * encoder.dim, dim=encoder.dim, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class BYOL:
    """Predict a slow teacher's embedding of the other view (Grill et al., 2020)."""

    sees: ClassVar[Sees] = "views"
    momentum: float = 0.99
    """Of the teacher at the start; 1 at the end."""

    def method(self, encoder: Encoder) -> Method:
        return ByolMethod(encoder, hidden=4 * encoder.dim, dim=encoder.dim, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class DINO:
    """Match a slow teacher's assignment of the whole from crops of it (Caron et al., 2021)."""

    sees: ClassVar[Sees] = "crops"
    prototypes: int = 512
    """Size of the assignment."""
    momentum: float = 0.99
    """Of the teacher at the start; 1 at the end."""

    def method(self, encoder: Encoder) -> Method:
        d = encoder.dim
        return DinoMethod(encoder, prototypes=self.prototypes, hidden=4 * d, bottleneck=d, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class MAE:
    """Hide most tokens and rebuild what they held (He et al., 2022)."""

    sees: ClassVar[Sees] = "masked"

    def method(self, encoder: Encoder) -> Method:
        return MaeMethod(tokens_of(encoder, self), dim=max(32, encoder.dim // 2), depth=2, heads=4)


def tokens_of(encoder: Encoder, recipe: object) -> TransformerEncoder:
    """The encoder, if its tokens can be hidden; TypeError if not."""
    if not isinstance(encoder, TransformerEncoder):
        raise TypeError(
            f"{type(recipe).__name__} hides tokens, and {type(encoder).__name__} has none to hide: "
            "choose a TransformerEncoder"
        )
    return encoder


METHODS = {"simclr": SimCLR, "byol": BYOL, "dino": DINO, "mae": MAE}
