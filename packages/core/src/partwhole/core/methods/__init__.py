"""The methods that know of no modality, one file each."""

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

__all__ = [
    "BYOL",
    "DINO",
    "IBOT",
    "IJEPA",
    "MAE",
    "BEiT",
    "BarlowTwins",
    "DINOv2",
    "DINOv3",
    "Data2Vec",
    "DeepCluster",
    "FixMatch",
    "LeJEPA",
    "MoCo",
    "OBoW",
    "PseudoLabel",
    "SimCLR",
    "SimSiam",
    "Supervised",
    "SwAV",
    "VICReg",
]
