"""Every method, small, in float64, on data of its own: for the tests of the loop and of several ranks."""

import torch
import torch.nn.functional as F
from miniatures import BATCH, Counted, D, Groups, Layers, Rows, clouds, encoder, same

from partwhole.audio.hubert import HuBERT
from partwhole.audio.wav2vec import Wav2Vec2
from partwhole.audio.wave_sees import hide_spans
from partwhole.audio.waveform import Waveform
from partwhole.core.data import Stream, together
from partwhole.core.masks import hide, target_blocks
from partwhole.core.method import Joint
from partwhole.core.methods.barlow_twins import BarlowTwins
from partwhole.core.methods.beit import BEiT
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.data2vec import Data2Vec
from partwhole.core.methods.deepcluster import DeepCluster
from partwhole.core.methods.dino import DINO
from partwhole.core.methods.dinov2 import DINOv2
from partwhole.core.methods.dinov3 import DINOv3
from partwhole.core.methods.fixmatch import FixMatch
from partwhole.core.methods.ibot import IBOT
from partwhole.core.methods.ijepa import IJEPA
from partwhole.core.methods.lejepa import LeJEPA
from partwhole.core.methods.mae import MAE
from partwhole.core.methods.moco import MoCo
from partwhole.core.methods.obow import OBoW
from partwhole.core.methods.pseudo_label import PseudoLabel
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.methods.simsiam import SimSiam
from partwhole.core.methods.supervised import Supervised
from partwhole.core.methods.swav import SwAV
from partwhole.core.methods.vicreg import VICReg
from partwhole.core.transformer import TransformerEncoder
from partwhole.multimodal.avts import AVTS
from partwhole.multimodal.contrast import Contrast
from partwhole.multimodal.l3 import L3
from partwhole.shape3d.acd import ComponentContrast
from partwhole.video.future import DPC, MemDPC
from partwhole.video.tubes import Tubes
from partwhole.video.walk import RandomWalk

# ------------------------------------------------------------------ views of a cloud


def two(sample):
    return {"views": [sample["x"] + 0.1 * torch.randn_like(sample["x"]) for _ in range(2)]}


def crops(sample):
    x = sample["x"]
    return {**two(sample), "crops": [x[:2], x[1:3]]}


def numbered(sample):
    return {**crops(sample), "index": sample["index"]}


def parts(sample):
    return {**two(sample), "component": [sample["group"], sample["group"]]}


def hiding(sample):
    """Views of which some tokens are hidden, in half of them: a rank may have nothing to predict."""
    return {**crops(sample), "hidden": [hide(len(sample["x"]), (0.3, 0.7), chance=0.5) for _ in range(2)]}


def masked(sample):
    return {"x": sample["x"], "hidden": hide(len(sample["x"]), 0.6)}


def named(sample):
    return {**masked(sample), "ids": sample["group"]}


def blocks(sample):
    """Padded to 6 tokens here, since what is drawn has them on its last axis."""
    x, short = sample["x"], 6 - len(sample["x"])
    drawn = {"valid": torch.ones(len(x), dtype=torch.bool), **target_blocks(x, targets=2, blocks=3)}
    return {"x": F.pad(x, (0, 0, 0, short)), **{k: F.pad(mask, (0, short)) for k, mask in drawn.items()}}


def spans(sample):
    """The numbers of a cloud, one after the other, as a sound of as many tokens as it has points."""
    x = sample["x"].flatten()
    hidden = hide_spans(len(sample["x"]), 0.3, 2)
    return {"x": x, "valid": torch.ones(len(x), dtype=torch.bool), "hidden": hidden, "ids": sample["group"],
            "seed": torch.randint(2**62, ())}  # fmt: skip


def waves():
    return TransformerEncoder(Waveform(D, channels=6, kernels=(3,), strides=(3,), reach=3), dim=D, depth=1, heads=2)


def walking(sample):
    """Nodes of four frames, made of the numbers of a cloud, and edges that are dropped."""
    x = sample["x"].mean() + torch.randn(4, 5, 3, 4, 4, dtype=sample["x"].dtype)
    return {"x": x, "dropped": torch.rand(2, 3, 5, 5) < 0.2}


def stretched(sample):
    """Four blocks of two frames."""
    return {"x": sample["x"].mean() + torch.randn(4, 3, 2, 8, 8, dtype=sample["x"].dtype)}


def tubes(size):
    return TransformerEncoder(Tubes(D, size=size, frames=2, patch=4, positions="learned"), dim=D, depth=1, heads=2)


def paired(sample):
    """A cloud as a picture, and others of it as what is heard, in time and out of it."""
    sounds = [sample["x"] + 0.1 * torch.randn_like(sample["x"]) for _ in range(2)]
    return {"x": sample["x"], "sound": sounds[0], "shifted": sounds[1], "draw": torch.rand(()),
            "index": sample["index"]}  # fmt: skip


def labelled(sample):
    """Every third label is unknown."""
    return {"x": sample["x"], "label": sample["group"].sum().remainder(3) - 1}


# ------------------------------------------------------------------ methods


def deepcluster(e):
    """Most things have a cluster from the start, so that there is a loss."""
    method = DeepCluster(e, things=24, every=2, prototypes=3, heads=3, hidden=D, dim=4, norm="layer")
    method.cluster.copy_(torch.arange(24) % 4 - 1)
    return method


small = {"hidden": D, "dim": 4}
heads = {"prototypes": 16, "hidden": D, "bottleneck": 4}

# name: method on an encoder, view (or views of several streams), whether the clouds differ in length
CASES = {
    "simclr": (lambda e: SimCLR(e, **small), two, True),
    "moco": (lambda e: MoCo(e, **small, queue=13), two, True),
    "byol": (lambda e: BYOL(e, **small, norm="layer"), two, True),
    "simsiam": (lambda e: SimSiam(e, **small, bottleneck=4), two, True),
    "swav": (lambda e: SwAV(e, **small, prototypes=6, queue=20, queue_from=0.3, norm="layer"), crops, True),
    "deepcluster": (deepcluster, numbered, True),
    "obow": (lambda e: OBoW(e, words=20), crops, True),
    "barlow": (lambda e: BarlowTwins(e, **small), two, True),
    "vicreg": (lambda e: VICReg(e, hidden=D, dim=12, norm="layer"), two, True),
    "lejepa": (lambda e: LeJEPA(e, **small, slices=8, norm="layer"), crops, True),
    "dino": (lambda e: DINO(e, **heads), crops, True),
    "ibot": (lambda e: IBOT(e, **heads, frozen=0.5), hiding, True),
    "dinov2": (lambda e: DINOv2(e, **heads), hiding, True),
    "dinov3": (lambda e: DINOv3(e, **heads, start=0.3, refresh=0.3), hiding, True),
    "mae": (lambda e: MAE(e, dim=D, depth=1, heads=2), masked, True),
    "beit": (lambda e: BEiT(e, vocabulary=2), named, True),
    "data2vec": (lambda e: Data2Vec(e, layers=1), masked, True),
    "ijepa": (lambda e: IJEPA(e, dim=D, depth=1, heads=2), blocks, True),
    "supervised": (lambda e: Supervised(e, classes=2, smoothing=0.1), labelled, True),
    "pseudo-label": (
        lambda e: PseudoLabel(e, classes=2, threshold=0.6, momentum=0.5),
        {"labelled": labelled, "unlabelled": same},
        True,
    ),
    "fixmatch": (lambda e: FixMatch(e, classes=2, threshold=0.6), {"labelled": labelled, "unlabelled": two}, True),
}
GENERIC = tuple(CASES)
CASES |= {
    "moco-batch": (lambda e: MoCo(e, **small, queue=0, norm="batch"), two, True),
    "byol-batchnorm": (lambda e: BYOL(e, **small, norm="batch"), two, True),
    "ibot-batchnorm": (lambda e: IBOT(e, **heads, norm="batch"), hiding, True),
    "acd": (lambda e: ComponentContrast(e, dim=8, clusters=3), parts, True),
    "hubert": (lambda e: HuBERT(waves(), units=2, dim=4, unmasked=0.5), spans, True),
    "wav2vec2": (lambda e: Wav2Vec2(waves(), codebook=(2, 3, 4), dim=4, distractors=5), spans, True),
    "walk": (lambda e: RandomWalk(tubes(4), dim=4), walking, True),
    "dpc": (lambda e: DPC(tubes(8), steps=2), stretched, True),
    "memdpc": (lambda e: MemDPC(tubes(8), steps=2, slots=5), stretched, True),
    "l3": (lambda e: L3(e, encoder(), hidden=D), paired, False),
    "avts": (lambda e: AVTS(e, encoder(), dim=4, hard=0.5, begin=0.3), paired, False),
    "av-contrast": (lambda e: Contrast(e, encoder(), dim=4), paired, False),
    "groups": (Groups, same, True),
    "counted": (Counted, same, True),
    "rows": (Rows, same, False),
    "layers": (lambda e: Rows(Layers()), same, False),
    "joint": (
        lambda e: Joint({"a": Groups(e), "b": SimCLR(e, **small)}, {"a": 10.0, "b": 1.0}),
        {"a": same, "b": two},
        True,
    ),
}


def make(name):
    """(method, stream) of a case."""
    method, view, ragged = CASES[name]
    torch.manual_seed(0)
    views = view if isinstance(view, dict) else {None: view}
    streams = {
        key: Stream(clouds(ragged), one, batch=BATCH, seed=i) for i, (key, one) in enumerate(views.items(), start=1)
    }
    return method(encoder()).double(), together(**streams) if isinstance(view, dict) else streams[None]
