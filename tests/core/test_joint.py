"""Joint: a weighted sum of methods over one encoder."""

import copy

import pytest
import torch
from common import single as draw

from partwhole.core.encoder import Vectors
from partwhole.core.method import Batch, Joint
from partwhole.core.methods.byol import BYOL
from partwhole.core.methods.mae import MAE
from partwhole.core.methods.simclr import SimCLR
from partwhole.core.transformer import TransformerEncoder

D = 12


def views() -> Batch:
    return {"views": [draw(4, 9, 3), draw(4, 9, 3, seed=1)]}


def masked() -> Batch:
    return {"x": draw(4, 9, 3), "hidden": draw(4, 9, seed=2) > 0}


def simclr() -> SimCLR:
    return SimCLR(TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2), hidden=D, dim=6)


def joint() -> Joint:
    one = simclr()
    return Joint(
        {"views": one, "tokens": MAE(one.encoder, dim=8, depth=1, heads=2)},  # type: ignore[arg-type]
        {"views": 10.0, "tokens": 0.5},
    )


def test_joint_is_the_weighted_sum_over_one_encoder():
    torch.manual_seed(0)
    method, batch = joint(), {"views": views(), "tokens": masked()}
    out = method(batch)
    parts = {k: method.parts[k](batch[k])["loss"] for k in batch}
    assert out["loss"].item() == pytest.approx((10 * parts["views"] + 0.5 * parts["tokens"]).item(), rel=1e-6)
    assert out["views/loss"].item() == pytest.approx(parts["views"].item())
    assert "views/std" in out
    names = [n for n, _ in method.named_parameters()]
    assert len([n for n in names if n.endswith("embed.project.weight")]) == 1, "the encoder is one"
    with pytest.raises(KeyError, match="tokens"):
        method({"views": views()})


def test_joint_refuses_what_does_not_fit():
    one = simclr()
    with pytest.raises(ValueError, match="share one encoder"):
        Joint({"a": one, "b": simclr()})
    with pytest.raises(ValueError, match="one weight for each part"):
        Joint({"a": one}, {"a": 1.0, "c": 2.0})
    with pytest.raises(ValueError, match="share one encoder"):
        Joint({})


def test_joint_moves_the_state_of_its_parts():
    torch.manual_seed(0)
    one = BYOL(simclr().encoder, hidden=D, dim=6, momentum=0.5)
    method = Joint({"a": one, "b": SimCLR(one.encoder, hidden=D, dim=6)})
    assert one.teacher is not None
    before = copy.deepcopy(one.teacher.state_dict())
    with torch.no_grad():
        next(one.encoder.parameters()).add_(1)
    method.after_step(0.0)
    assert any(not torch.equal(v, before[k]) for k, v in one.teacher.state_dict().items())
