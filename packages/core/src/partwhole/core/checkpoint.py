"""What is kept of a training: its whole state to go on from, and the encoder to use elsewhere.

Nothing of a user's is unpickled: tensors come back through ``weights_only`` or safetensors, the rest is JSON.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from partwhole.core import distributed, optim
from partwhole.core.encoder import Encoder, build, describe
from partwhole.core.files import write

FORMAT = "partwhole training state, version 1"
LAST = "last.pt"
WEIGHTS, ABOUT = "encoder.safetensors", "encoder.json"


class BadCheckpoint(ValueError):
    """A file is truncated, foreign, or of another network."""


class OtherRecipe(ValueError):
    """The folder holds a run of another recipe."""


class OtherEncoder(ValueError):
    """The folder holds another encoder than the one that is wanted."""


# ------------------------------------------------------------------ training state


def save(folder: Path, method: nn.Module, optimizer: Optimizer, step: int, identity: Mapping[str, Any]) -> None:
    """Write ``folder/last.pt``: the state after ``step`` steps. All ranks call it, rank 0 writes; NotSaved on all."""
    state = {
        "format": FORMAT,
        "step": step,
        "identity": json.dumps(identity, sort_keys=True),
        "method": _method_state(method),
        "optimizer": optim.state(optimizer, method),
    }

    def work() -> None:
        if distributed.rank() == 0:
            write(folder / LAST, lambda file: torch.save(state, file))

    distributed.attempt(work, f"saving step {step} to {folder}")


def load(folder: Path, method: nn.Module, optimizer: Optimizer, identity: Mapping[str, Any]) -> int:
    """Take back what ``save`` wrote, on any number of ranks, sharded or not; return the step, 0 if there is nothing.

    Raises BadCheckpoint for a file that cannot be read or is of another network, and OtherRecipe, naming the fields,
    where the saved identity differs from ``identity``.
    """
    path = folder / LAST
    if not path.exists():
        return 0
    state = read(path)
    try:
        saved = json.loads(state["identity"])
    except ValueError as error:
        raise BadCheckpoint(f"{path} does not say of which recipe it is ({error}). Delete it to start again") from error
    differing = differences(saved, json.loads(json.dumps(identity)))
    if differing:
        raise OtherRecipe(
            f"{folder} holds a run of another recipe, at step {state['step']}: {'; '.join(differing)}. "
            f"Choose another folder, or the same recipe to go on with it, or delete {path} to start again"
        )
    try:
        if state["step"] and not state["optimizer"] and optim.remembers(optimizer):
            raise ValueError("it holds nothing of the optimizer")
        _restore_method(method, state["method"])
        optim.restore(optimizer, method, state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadCheckpoint(f"{path} is of another network than this recipe builds: {error}") from error
    return state["step"]


def restore(folder: Path, method: nn.Module) -> nn.Module:
    """``method`` with the weights of the run in ``folder``; BadCheckpoint where there are none that fit."""
    path = folder / LAST
    if not path.exists():
        raise BadCheckpoint(f"{path} is missing: what was trained beside the encoder cannot be shown without it")
    try:
        _restore_method(method, read(path)["method"])
    except (RuntimeError, KeyError) as error:
        raise BadCheckpoint(f"{path} is of another network than this recipe builds: {error}") from error
    return method


def read(path: Path) -> dict[str, Any]:
    """The saved state as a dict of plain values and CPU tensors. BadCheckpoint where it is not one."""
    path.open("rb").close()  # what cannot be opened is another matter than what cannot be read
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise BadCheckpoint(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint, it may be truncated or of another "
            f"program ({type(error).__name__}). Delete it to start again"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise BadCheckpoint(f"{path} is not a {FORMAT!r}, but {found!r}. Delete it or choose another folder")
    kinds = {"step": int, "identity": str, "method": dict, "optimizer": dict}
    bad = [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]
    if bad:
        raise BadCheckpoint(f"{path} has no {' and no '.join(bad)} that can be read. Delete it to start again")
    taken = [int(v["step"]) for v in state["optimizer"].values() if "step" in v]
    if taken and max(taken) != state["step"]:
        raise BadCheckpoint(
            f"{path} is of half a step: the weights are those after {state['step']} steps, the optimizer's state that "
            f"after {max(taken)}. Delete it to start again"
        )
    return state


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, such as "fit.lr: 0.001 there, 0.0003 now"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{name}.{k}" if name else k)]
    return [] if old == new else [f"{name}: {old!r} there, {new!r} now"]


def _method_state(method: nn.Module) -> dict[str, Tensor]:
    """The whole state on the CPU; a tensor under several names is kept once."""
    kept: dict[Any, Tensor] = {}
    out = {}
    for name, x in method.state_dict().items():
        local = distributed.local(x)
        key = (local.data_ptr(), x.shape, x.stride()) if local.numel() else name
        if key not in kept:  # every rank meets the same names in the same order
            kept[key] = distributed.full(x).detach().cpu()
        out[name] = kept[key]
    return out


def _restore_method(method: nn.Module, saved: Mapping[str, Tensor]) -> None:
    if any(distributed.is_sharded(m) for m in method.modules()):
        mine = method.state_dict()
        saved = {k: distributed.like(v, mine[k]) if k in mine else v for k, v in saved.items()}
    method.load_state_dict(saved)


# ------------------------------------------------------------------ the encoder


def save_encoder(encoder: Encoder, folder: str | Path) -> None:
    """Write ``encoder.safetensors`` (weights) and ``encoder.json`` (how to build it). All ranks call, rank 0 writes."""
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    about = {"format": 1, "encoder": describe(encoder)}
    weights = {k: v.clone().contiguous() for k, v in _method_state(encoder).items()}

    def work() -> None:
        if distributed.rank() == 0:
            write(folder / WEIGHTS, lambda file: file.write(to_bytes(weights)))
            write(folder / ABOUT, lambda file: file.write(json.dumps(about, indent=2).encode()))

    distributed.attempt(work, f"saving the encoder to {folder}")


def copied(encoder: Encoder) -> Encoder:
    """The same encoder again, whole on every rank however it is sharded (all ranks call it), on the same device.

    Random states are left alone. A sharded module cannot be copied by ``copy.deepcopy``.
    """
    with torch.random.fork_rng(devices=[]):
        new = build(describe(encoder), allow=[type(m).__module__ for m in encoder.modules()])  # it runs here already
    assert isinstance(new, Encoder)
    new.load_state_dict({k: v.clone() for k, v in _method_state(encoder).items()}, assign=True)  # keeps the dtype
    return new.to(next(encoder.parameters()).device).train(encoder.training)


AGAIN = "The command of its run, called again, writes it anew"


def load_encoder(folder: str | Path, *, allow: Sequence[str] = ()) -> Encoder:
    """Rebuild the encoder that a run left in ``folder``, in eval mode on the CPU.

    Its class must live in partwhole, or in a package named in ``allow``: no other code runs, and nothing is unpickled.
    Raises FileNotFoundError where there is none, BadCheckpoint for damaged or foreign files.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    encoder, path = build(description(folder), allow=allow), Path(folder) / WEIGHTS
    try:
        encoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise BadCheckpoint(f"{path} is truncated, unreadable or of another encoder: {error}. {AGAIN}") from error
    assert isinstance(encoder, Encoder)
    return encoder.eval()


def description(folder: str | Path) -> dict[str, Any]:
    """What ``describe`` said of the encoder that a run left in ``folder``; raises as ``load_encoder`` does."""
    folder = Path(folder)
    for path in (folder / ABOUT, folder / WEIGHTS):
        if not path.exists():
            there = "a folder without it" if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"no encoder in {folder}: {path.name} is missing ({there}). A finished run has one")
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text())
        described = about["encoder"] if about["format"] == 1 else None
        if described is not None:
            _ = described["class"], described["arguments"].items()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BadCheckpoint(f"{path} is damaged or foreign: {type(error).__name__}: {error}. {AGAIN}") from error
    if described is None:
        raise BadCheckpoint(f"{path} has format {about['format']!r}, and this version reads 1")
    return described


def start(encoder: Encoder, folder: str | Path) -> Encoder:
    """The encoder that a run left in ``folder``, to be trained on in place of ``encoder``, a fresh one like it.

    What their classes call ``incidental`` may differ, and is then that of the folder. Random states are left alone.
    Raises as ``load_encoder`` does, and OtherEncoder, naming what differs.
    """
    there, here = description(folder), json.loads(json.dumps(describe(encoder)))
    differing = differences(_decisive(there, encoder), _decisive(here, encoder))
    if there["class"] != here["class"]:
        differing = [f"{there['class']} there, {here['class']} now"]
    if differing:
        told = "; ".join(differing).replace("arguments.", "")
        raise OtherEncoder(
            f"{folder} holds another encoder than this recipe trains: {told}. "
            "Give this recipe the network of that run (its run.json has the fields), or start from another run"
        )
    with torch.random.fork_rng(devices=[]):
        return load_encoder(folder, allow=[type(m).__module__ for m in encoder.modules()]).train()  # it runs already


def _decisive(described: dict[str, Any], module: Any) -> dict[str, Any]:
    """A description without what is incidental to encoders and embeddings such as ``module``.

    What it lacks it was written before: those arguments are as usual.
    """
    if described["class"] != describe(module)["class"]:
        return described
    known = inspect.signature(type(module)).parameters.items()
    usual = json.loads(json.dumps({k: p.default for k, p in known if p.default is not p.empty}, default=str))
    kept = {k: v for k, v in {**usual, **described["arguments"]}.items() if k not in module.incidental}
    nested = {k: _decisive(v, getattr(module, k)) for k, v in kept.items() if _nests(v, getattr(module, k, None))}
    return {**described, "arguments": kept | nested}


def _nests(value: Any, module: Any) -> bool:
    return isinstance(value, dict) and isinstance(module, nn.Module)
