"""Features of a frame as a map, by which things are followed through a video."""

from torch import Tensor

from partwhole.core.encoder import Encoder
from partwhole.video.network import FrameResNet
from partwhole.vision.maps import feature_map


def frame_map(encoder: Encoder, x: Tensor) -> Tensor:
    """Frames x (B, 3, H, W) -> (B, D, h, w): of a FrameResNet the stage that it is to be read at, of all other encoders
    ``vision.maps.feature_map``."""
    return encoder.map(x) if isinstance(encoder, FrameResNet) else feature_map(encoder, x)


def trained_map(encoder: Encoder, x: Tensor) -> Tensor:
    """The same of what is trained: of a FrameResNet the last stage, with the strides that it is trained with."""
    return feature_map(encoder.trunk if isinstance(encoder, FrameResNet) else encoder, x)
