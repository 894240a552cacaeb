"""Encoders of images out to timm and to the layout of the Hugging Face hub, and weights from there in.

Letters: N patches, D features.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partwhole.core import files
from partwhole.core.encoder import Encoder
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.backbone import Backbone
from partwhole.vision.embed import Patches
from partwhole.vision.views import MEAN, STD

LOCAL = "local-dir:"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder, the first that is there
# Our transformer in timm's words. Its norms add 1e-5 to the variance, as torch's do; timm's add 1e-6, which a config
# cannot change. But timm's CLIP models add 1e-5 too, and are the usual ones once the norm before is left out.
TRANSFORMER = "vit_base_patch16_clip_224"

OF_THE_NETWORK = (  # what timm says of a model; the rest is of weights that it offers: their licence, origin, paper
    "architecture", "input_size", "fixed_input_size", "num_classes", "pool_size", "interpolation", "first_conv",
    "classifier",
)  # fmt: skip


class Unlike(ValueError):
    """Weights or networks that do not fit those of timm."""


# ------------------------------------------------------------------ out


def architecture(encoder: Encoder, size: int | None = None) -> tuple[str, dict[str, Any]]:
    """(name, arguments) with which ``timm.create_model`` makes the encoder's network, but for its weights.

    size: of the images for which positions of our transformer are written down; default: those it was made for.
    Unlike, with the reason, where timm has none that computes the same.
    """
    if isinstance(encoder, Backbone):
        if encoder.stem != "usual":
            raise Unlike(
                f"timm has no {encoder.name} with a stem for small images, so it could not take these weights: train "
                "with --network.stem usual, or use the encoder as it is (partwhole.core.load_encoder)"
            )
        return encoder.name, dict(encoder.arguments)
    embed = getattr(encoder, "embed", None)
    if not isinstance(encoder, TransformerEncoder) or not isinstance(embed, Patches):
        inside = "" if embed is None else f" over {type(embed).__name__}"
        raise Unlike(
            f"{type(encoder).__name__}{inside} is no network that timm has: it takes its own (Backbone) and our "
            "transformer over patches of images"
        )
    if encoder.rope is not None or encoder.causal:
        what = "causal attention" if encoder.causal else "positions by turning (rope)"
        raise Unlike(f"the transformer has {what}, which timm's VisionTransformer has not")
    return TRANSFORMER, {
        "img_size": _seen(embed, size),
        "patch_size": embed.patch,
        "in_chans": embed.channels,
        "embed_dim": encoder.dim,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "class_token": encoder.cls,
        "reg_tokens": encoder.registers,
        "no_embed_class": True,
        "pre_norm": False,
        "global_pool": "token" if encoder.cls else "avg",
        "fc_norm": False,
        "dynamic_img_size": True,
    }


def _seen(embed: Patches, size: int | None) -> int:
    """The pixels a side that whole patches of an image cover."""
    return (embed.size if size is None else size) // embed.patch * embed.patch


def to_timm(encoder: Encoder, size: int | None = None) -> Any:
    """The encoder's network as one of timm, without classifier, on the CPU, in eval mode; Unlike as ``architecture``.

    ``net.forward_features(x)`` has what ``encoder(x)`` has. Positions of our transformer are equal for images of
    ``size``; at others timm interpolates them, where ours are computed.
    """
    import timm

    name, arguments = architecture(encoder, size)
    net = timm.create_model(name, num_classes=0, **arguments)
    state = encoder.net.state_dict() if isinstance(encoder, Backbone) else _of_transformer(encoder, size)
    net.load_state_dict({k: v.detach().cpu() for k, v in state.items()})
    return net.eval()


def _of_transformer(encoder: Any, size: int | None) -> dict[str, Tensor]:
    """Our transformer's weights by timm's names."""
    embed, dim = encoder.embed, encoder.dim
    blank = torch.zeros(1, embed.channels, *[_seen(embed, size)] * 2, device=embed.project.weight.device)
    state = {"pos_embed": embed.position(blank).clone()}  # (1, N, D)
    if encoder.first is not None:
        first = encoder.first.view(1, -1, dim)
        parts = {"cls_token": first[:, : int(encoder.cls)], "reg_token": first[:, int(encoder.cls) :]}
        state |= {k: v for k, v in parts.items() if v.numel()}
    modules = {"patch_embed.proj": embed.project, "norm": encoder.trunk.norm}
    for i, block in enumerate(encoder.trunk.blocks):
        inside = {"norm1": block.norm1, "attn.qkv": block.attention.qkv, "attn.proj": block.attention.out,
                  "norm2": block.norm2, "mlp.fc1": block.mlp[0], "mlp.fc2": block.mlp[2]}  # fmt: skip
        modules |= {f"blocks.{i}.{k}": m for k, m in inside.items()}
    return state | {f"{k}.{w}": getattr(m, w) for k, m in modules.items() for w in ("weight", "bias")}


def export_timm(encoder: Encoder, path: Path, *, size: int | None = None) -> str:
    """Write timm's state dict, without classifier, as one file of safetensors, for images of ``size`` as in
    ``architecture``; return the line of Python that loads it.

    What ``timm.create_model`` needs stands in the head of the file too ("architecture", "model_args").
    """
    from safetensors.torch import save

    name, arguments = architecture(encoder, size)
    state = {k: v.contiguous() for k, v in to_timm(encoder, size).state_dict().items()}
    data = save(state, metadata={"format": "pt", "architecture": name, "model_args": json.dumps(arguments)})
    files.write(path, lambda file: file.write(data))
    words = "".join(f", {k}={v!r}" for k, v in arguments.items())
    return f'timm.create_model("{name}", num_classes=0{words}).load_state_dict(safetensors.torch.load_file("{path}"))'


def export_hub(encoder: Encoder, folder: Path, *, size: int) -> str:
    """Write a folder as the Hugging Face hub has it, ``config.json`` and ``model.safetensors``, for images of ``size``
    pixels normalised as ours; return the line of Python that loads it."""
    from timm.models import save_for_hf

    net = to_timm(encoder, size)
    net.pretrained_cfg = {k: v for k, v in net.pretrained_cfg.items() if k in OF_THE_NETWORK}
    whole = size if isinstance(encoder, Backbone) else architecture(encoder, size)[1]["img_size"]  # timm takes no rest
    seen = {"input_size": (3, whole, whole), "mean": MEAN, "std": STD, "crop_pct": 1.0}
    with files.writing(folder / "model.safetensors"):
        save_for_hf(net, str(folder), safe_serialization=True, data_config=seen)
    return f'timm.create_model("{LOCAL}{folder}", pretrained=True)'


# ------------------------------------------------------------------ in


def described(folder: Path) -> tuple[str, list[list[Any]]]:
    """The architecture that a folder of the hub's layout names, and the options with which ``Backbone`` makes it."""
    path = folder / "config.json"
    if not path.is_file():
        there = "it is not there" if folder.is_dir() else "there is no such folder"
        raise Unlike(f"{LOCAL}{folder} needs {path}, and {there}: give a folder with config.json and model.safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, arguments = config["architecture"], dict(config.get("model_args") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unlike(
            f"{path} is no config of timm ({type(error).__name__}: {error}): it must name an architecture of timm's; "
            "models of other libraries cannot be read"
        ) from error
    if arguments.get("in_chans", 3) != 3:
        raise Unlike(f"{path} is of a network for images of {arguments['in_chans']} channels: 3 are needed")
    ours = ("num_classes", "in_chans", "img_size", "dynamic_img_size")  # a backbone sets them itself
    return name, [[k, v] for k, v in arguments.items() if k not in ours]


def weights_in(folder: Path) -> Path:
    """The file of weights of a folder of the hub's layout."""
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise Unlike(f"{folder} has no weights: {' or '.join(FILES)} must lie in it")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors, or of torch (.pth, .pt, .bin), of which nothing but tensors is read."""
    from timm.models import load_state_dict

    if not path.is_file():
        raise Unlike(f"no weights at {path}: {'a folder' if path.is_dir() else 'no such file'}. Give a file of weights")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise Unlike(
            f"{path} ({path.stat().st_size} bytes) cannot be read as weights; it may be truncated, or hold more than "
            f"tensors, which would run code ({type(error).__name__}: {str(error)[:200]}). Give safetensors, or a "
            "state_dict that torch saved"
        ) from error
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def load_weights(encoder: Backbone, path: Path) -> None:
    """Take the weights of a file into a backbone, all but a classifier's; positions are fitted to its size of images.

    Unlike, naming what is missing, unknown or of another shape.
    """
    state, mine = read_weights(path), encoder.net.state_dict()
    if state and all(k.split(".")[0] in ("net", "trunk", "embed", "first") for k in state):
        raise Unlike(f"{path} is an encoder of partwhole: give --init {path.parent} instead")
    known = getattr(sys.modules[type(encoder.net).__module__], "checkpoint_filter_fn", None)
    if known is not None:  # timm's own, for names of other authors and other sizes of images
        state = known(state, encoder.net)
    classifier = encoder.net.default_cfg.get("classifier") or ()
    heads = tuple(f"{c}." for c in ((classifier,) if isinstance(classifier, str) else classifier))
    spare = {k for k in state if k.endswith("num_batches_tracked") and k not in mine}  # our BatchNorm counts none
    state = {k: v for k, v in state.items() if not k.startswith(heads) and k not in spare}
    wrong = [f"{k} is {_shape(state[k])} there, {_shape(v)} here" for k, v in mine.items()
             if k in state and state[k].shape != v.shape]  # fmt: skip
    told = [_listed("of another shape", wrong), _listed("missing", [k for k in mine if k not in state]),
            _listed("unknown", [k for k in state if k not in mine])]  # fmt: skip
    if any(told):
        raise Unlike(
            f"{path} does not fit {encoder.name} (width {encoder.width:g}, stem {encoder.stem}): "
            f"{'; '.join(filter(None, told))}. Name the network that it is of; weights of others mostly have width 1 "
            "and the usual stem"
        )
    encoder.net.load_state_dict(state)


def _shape(x: Tensor) -> str:
    return " x ".join(map(str, x.shape)) or "a number"


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{what}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
