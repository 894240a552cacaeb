"""A training step of other libraries, for step.py: each as its authors write it.

lightly: the steps of its examples, with its ``MaskedVisionTransformerTIMM`` around timm's ViT as the backbone.
solo-learn: its method classes, whose ``training_step``, optimizer and update of the teacher are called in a bare loop;
its trainer's logging falls away. DINO takes two views there, and the version published on PyPI (1.0.2) has no MAE.
ImportError where a library is not installed. The options, ``args``, are step.py's.
"""

import argparse
import copy
import importlib
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

PATCH, LR, DECAY, MOMENTUM = 16, 1e-4, 0.05, 0.996
HIDDEN, PROTOTYPES, BOTTLENECK = 0.75, 65536, 256  # of MAE's tokens; of DINO's head
DECODER = {"dim": 512, "depth": 8, "heads": 16}  # MAE's


@dataclass(frozen=True)
class Side:
    """What a library does in a step. ``follow`` moves what the optimizer does not."""

    loss: Callable[[], Tensor]
    optimizer: Optimizer
    follow: Callable[[], object] = lambda: None

    def phases(self) -> dict[str, measure.Work]:
        """Each part of a step, to be called in turn."""
        found: list[Tensor] = []

        def optimise() -> None:
            self.optimizer.step()
            self.optimizer.zero_grad()

        return {
            "forward": lambda: found.append(self.loss()),
            "backward": lambda: found.pop().backward(),
            "optimizer": optimise,
            "teacher": self.follow,
        }

    def step(self) -> None:
        for work in self.phases().values():
            work()


# ------------------------------------------------------------------ lightly's, as its examples have them


def backbone(args: argparse.Namespace) -> Any:
    """Its cover of timm's vision transformer, without a classifier."""
    vit = importlib.import_module("timm.models.vision_transformer")
    modules = importlib.import_module("lightly.models.modules")
    bare = getattr(vit, f"vit_{args.size}_patch16_224")
    net = bare(num_classes=0, img_size=args.pixels, dynamic_img_size=True)
    return modules.MaskedVisionTransformerTIMM(vit=net)


def assemble(args: argparse.Namespace, **parts: nn.Module) -> tuple[nn.ModuleDict, Optimizer]:
    model = nn.ModuleDict(parts).to(args.device).train()
    return model, AdamW(model.parameters(), lr=LR, weight_decay=DECAY)


def lightly_simclr(views: Sequence[Tensor], args: argparse.Namespace) -> Side:
    heads, losses = (importlib.import_module(f"lightly.{x}") for x in ("models.modules.heads", "loss"))
    net = backbone(args)
    head = heads.SimCLRProjectionHead(net.vit.embed_dim, 2048, 128, batch_norm=False)
    model, optimizer = assemble(args, net=net, head=head)
    criterion = losses.NTXentLoss(temperature=0.1)
    return Side(lambda: criterion(*(model["head"](model["net"](x)) for x in views)), optimizer)


def lightly_byol(views: Sequence[Tensor], args: argparse.Namespace) -> Side:
    heads, losses, utils = (
        importlib.import_module(f"lightly.{x}") for x in ("models.modules.heads", "loss", "models.utils")
    )
    net = backbone(args)
    student = nn.Sequential(net, heads.BYOLProjectionHead(net.vit.embed_dim, 4096, 256))
    teacher = copy.deepcopy(student)
    utils.deactivate_requires_grad(teacher)
    model, optimizer = assemble(args, s=student, t=teacher, predict=heads.BYOLPredictionHead(256, 4096, 256))
    criterion = losses.NegativeCosineSimilarity()

    def loss() -> Tensor:
        p = [model["predict"](model["s"](x)) for x in views]
        z = [model["t"](x).detach() for x in views]
        return 0.5 * (criterion(p[0], z[1]) + criterion(p[1], z[0]))

    return Side(loss, optimizer, lambda: utils.update_momentum(student, teacher, MOMENTUM))


def lightly_dino(views: Sequence[Tensor], args: argparse.Namespace) -> Side:
    """The first two of ``views`` are those that the teacher sees."""
    heads, losses, utils = (
        importlib.import_module(f"lightly.{x}") for x in ("models.modules.heads", "loss", "models.utils")
    )
    net = backbone(args)
    student = nn.Sequential(net, heads.DINOProjectionHead(net.vit.embed_dim, 2048, BOTTLENECK, PROTOTYPES))
    teacher = nn.Sequential(
        copy.deepcopy(net), heads.DINOProjectionHead(net.vit.embed_dim, 2048, BOTTLENECK, PROTOTYPES)
    )  # weight_norm cannot be copied
    teacher.load_state_dict(student.state_dict())
    utils.deactivate_requires_grad(teacher)
    model, optimizer = assemble(args, s=student, t=teacher)
    criterion = losses.DINOLoss(output_dim=PROTOTYPES, warmup_teacher_temp_epochs=5).to(args.device)

    def loss() -> Tensor:
        known = [model["t"](x) for x in views[:2]]
        return criterion(known, [model["s"](x) for x in views], epoch=1)

    return Side(loss, optimizer, lambda: utils.update_momentum(student, teacher, MOMENTUM))


def lightly_mae(x: Tensor, args: argparse.Namespace) -> Side:
    modules, utils = (importlib.import_module(f"lightly.models.{x}") for x in ("modules", "utils"))
    net = backbone(args)
    patches, length, dim = net.vit.patch_embed.num_patches, net.sequence_length, DECODER["dim"]
    decoder = modules.MaskedVisionTransformerDecoderTIMM(
        num_patches=patches, embed_dim=dim, depth=DECODER["depth"], num_heads=DECODER["heads"]
    )
    narrow, rebuild = nn.Linear(net.vit.embed_dim, dim), nn.Linear(dim, PATCH * PATCH * 3)
    model, optimizer = assemble(args, net=net, narrow=narrow, decoder=decoder, rebuild=rebuild)

    def loss() -> Tensor:
        keep, hidden = utils.random_token_mask(size=(len(x), length), mask_ratio=HIDDEN, device=x.device)
        shown = model["narrow"](net.encode(images=x, idx_keep=keep))
        tokens = shown.new_zeros(len(x), length, dim)
        tokens = utils.set_at_index(tokens, keep, shown)
        prediction = model["rebuild"](utils.get_at_index(decoder(tokens, idx_mask=hidden), hidden))
        return F.mse_loss(prediction, utils.get_at_index(utils.patchify(x, PATCH), hidden - 1))

    return Side(loss, optimizer)


# ------------------------------------------------------------------ solo-learn's


def without_bolts() -> None:
    """Of lightning-bolts, which no longer imports beside a recent Lightning, it needs the name of a schedule alone."""
    for module in ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler"):
        sys.modules[module] = types.ModuleType(module)
    sys.modules["pl_bolts.optimizers.lr_scheduler"].LinearWarmupCosineAnnealingLR = None  # type: ignore[attr-defined]


def solo(name: str, views: Sequence[Tensor], args: argparse.Namespace, **options: object) -> Side:
    without_bolts()
    teacher = {"base_tau_momentum": MOMENTUM, "final_tau_momentum": 1.0, "momentum_classifier": False}
    model = getattr(importlib.import_module("solo.methods"), name)(
        encoder=f"vit_{args.size}",
        backbone_args={"patch_size": PATCH, "img_size": args.pixels},
        num_classes=10,  # it trains a classifier on the features beside
        batch_size=args.batch,
        max_epochs=100,
        optimizer="adamw",
        lr=LR,
        classifier_lr=LR,
        weight_decay=DECAY,
        scheduler="none",
        lars=False,
        exclude_bias_n_norm=False,
        accumulate_grad_batches=1,
        extra_optimizer_args={},
        min_lr=0.0,
        warmup_start_lr=0.0,
        warmup_epochs=0,
        num_large_crops=len(views),
        num_small_crops=0,
        **options,
        **({} if name == "SimCLR" else teacher),
    )
    model.to(args.device).train()
    things = torch.arange(args.batch, device=args.device)

    def follow() -> None:
        for pair in model.momentum_pairs if name != "SimCLR" else []:
            model.momentum_updater.update(*pair)

    return Side(
        lambda: model.training_step([things, list(views), things % 10], 0), model.configure_optimizers(), follow
    )


SOLO_DINO = {
    "proj_hidden_dim": 2048,
    "proj_output_dim": BOTTLENECK,
    "num_prototypes": PROTOTYPES,
    "use_bn_in_head": False,
    "norm_last_layer": True,
    "clip_grad": 0,
    "freeze_last_layer": 0,
    "student_temperature": 0.1,
    "teacher_temperature": 0.07,
    "warmup_teacher_temperature": 0.04,
    "warmup_teacher_temperature_epochs": 30,
}
