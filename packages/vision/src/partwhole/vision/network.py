"""The networks that a recipe can ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from partwhole.core.encoder import Encoder
from partwhole.core.transformer import TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class Network:
    """The encoder of images. Defaults for images of 32 to 64 pixels on two CPU cores."""

    name: str = "resnet18"
    """vit, our transformer over patches, or a model of timm such as resnet50, vit_small_patch16_224, convnext_tiny, or
    local-dir:FOLDER, a model with its weights as the Hugging Face hub has it (config.json, model.safetensors).
    """
    weights: Path | None = None
    """Weights for a model of timm, a state dict as safetensors (or .pth of tensors alone); default: fresh ones."""
    width: float = 0.5
    """Channels of a ResNet, as a share of the usual."""
    stem: Literal["usual", "small"] = "usual"
    """small: a ResNet for images of 32 pixels, which does not halve them twice at once; six to ten times slower."""
    dim: int = 192
    """Features of our transformer."""
    depth: int = 6
    """Blocks of our transformer."""
    patch: int = 8
    """Side of a patch of our transformer, in pixels: half of it is four times as many tokens."""
    cls: bool = True
    """Give our transformer a token of the whole image, which then stands for it; without one the mean of the patches
    does. What trains patches alone (MAE, say) leaves such a token as it was.
    """
    registers: int = 0
    """Tokens of our transformer that stand for nothing, and keep maps of attention clean (Darcet et al., 2024)."""

    def __post_init__(self) -> None:
        for name, least in {"dim": 1, "depth": 1, "patch": 1, "registers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} of the network is {getattr(self, name)}; expected {least} or more")
        if not self.width > 0:
            raise ValueError(f"width of the network is {self.width}; expected a number above 0")

    def unused(self, usual: "Network") -> list[str]:
        """Options that are not as ``usual``, and are of another network than this one."""
        of = ("width", "stem") if self.name == "vit" else ("dim", "depth", "patch", "cls", "registers")
        if self.name != "vit" and not self.name.startswith("resnet"):
            of = ("width", *of)
        return [name for name in of if getattr(self, name) != getattr(usual, name)]

    def build(self, size: int) -> Encoder:
        """For images of ``size`` by ``size`` pixels; with fresh weights, where none are given."""
        if self.name == "vit":
            if self.weights is not None:
                raise ValueError("--network.weights are those of a model of timm: for vit give --init, a run's folder")
            return self.transformer(size)
        from partwhole.vision.backbone import Backbone
        from partwhole.vision.exchange import LOCAL, described, load_weights

        if self.name.startswith(LOCAL):
            name, options = described(Path(self.name.removeprefix(LOCAL)))
            encoder = Backbone(name, size=size, stem=self.stem, options=options)
        else:
            width = self.width if self.name.startswith("resnet") else 1.0
            encoder = Backbone(self.name, size=size, width=width, stem=self.stem)
        if (path := self.given()) is not None:
            load_weights(encoder, path)
        return encoder

    def given(self) -> Path | None:
        """The file of weights, if any."""
        from partwhole.vision.exchange import LOCAL, weights_in

        if self.weights is None and self.name.startswith(LOCAL):
            return weights_in(Path(self.name.removeprefix(LOCAL)))
        return self.weights

    def transformer(self, size: int) -> TransformerEncoder:
        from partwhole.vision.embed import Patches

        embed = Patches(self.dim, size=size, patch=self.patch)
        heads = max(1, self.dim // 64)
        return TransformerEncoder(
            embed, dim=self.dim, depth=self.depth, heads=heads, cls=self.cls, registers=self.registers
        )
