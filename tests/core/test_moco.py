"""MoCo, in its versions, and the queue."""

import pytest
import torch
from common import check_options
from common import single as draw
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from partwhole.core.encoder import Max, Vectors
from partwhole.core.method import Batch
from partwhole.core.methods.moco import MoCo
from partwhole.core.schedules import cosine
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder

D = 12


def views(batch: int = 5) -> Batch:
    """Two views of unequal lengths, with padding."""
    return {
        "views": [draw(batch, n, 3, seed=n) for n in (9, 7)],
        "valid": [draw(batch, n, seed=10 + n) > -0.5 for n in (9, 7)],
    }


def moco(**options) -> MoCo:
    encoder = TransformerEncoder(Vectors(3, D, length=9), dim=D, depth=1, heads=2)
    return MoCo(encoder, **{"queue": 11, "hidden": D, "dim": 6, **options})


def embedded(method: MoCo, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """(the student's two views, the teacher's), on the unit sphere but for a predictor."""
    pairs = list(zip(batch["views"], batch["valid"], strict=True))
    mine = [method.head(method.encoder(x, valid=v), v) for x, v in pairs]
    return mine, [normalize(method.teacher(x, v), dim=-1) for x, v in pairs]


VERSIONS = {
    "v1": lambda: moco(hidden=0, temperature=0.07),
    "v2": moco,
    "v2, a short queue": lambda: moco(norm="layer", queue=3),
    "v3": lambda: moco(queue=0, norm="batch", momentum=0.99),
    "v3, no norm": lambda: moco(queue=0, momentum=0.99),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_contract(version):
    """P1, P3, P4 over ranks as threads, S1, S3, S4, padding, dtypes: see ``check_method``."""
    check_method(VERSIONS[version], views())


@pytest.mark.parametrize("queue", [0, 11])
def test_P11_every_option_changes_the_loss(queue):
    options = [{}, {"hidden": 7}, {"hidden": 0}, {"dim": 5}, {"temperature": 0.5}, {"momentum": 0.5}]
    options += [{"norm": "batch"}, {"norm": "layer"}, {"pool": Max()}, {"queue": 12 if queue else 11}]
    check_options(lambda **option: moco(**{"queue": queue, **option}), views(), options)


def test_the_query_is_told_from_the_queue_alone():
    """The official code: logits [q . k, q . queue] / temperature, and the first is right."""
    torch.manual_seed(0)
    method, batch = moco(), views()
    assert method.queue is not None
    method.queue.rows.copy_(normalize(draw(11, 6), dim=-1))
    method.queue.fresh.copy_(method.queue.rows)
    mine, theirs = embedded(method, batch)
    q, k = normalize(mine[0], dim=-1), theirs[1]
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.rows.mT], 1) / 0.2
    expected = cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    assert method(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    before = method.queue.rows.clone()
    method.after_step(0.5)
    assert torch.equal(method.queue.rows[5:], before[5:])
    assert torch.allclose(method.queue.rows[:5], k, atol=1e-5), "the teacher's keys of the second view came"


def test_without_a_queue_each_view_is_told_from_the_batch():
    """Version 3: ctr(q1, k2) + ctr(q2, k1), halved."""
    torch.manual_seed(0)
    method, batch = moco(queue=0), views()
    assert method.predict is not None
    mine, theirs = embedded(method, batch)
    terms = []
    for a, b in ((0, 1), (1, 0)):
        q = normalize(method.predict(mine[a]), dim=-1)
        terms.append(cross_entropy(q @ theirs[b].mT / 0.2, torch.arange(5)))
    assert method(batch)["loss"].item() == pytest.approx((sum(terms) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("queue", [0, 11])
def test_the_teacher_follows_at_a_constant_pace_with_a_queue_and_slower_and_slower_without(queue):
    method = moco(queue=queue, momentum=0.9)
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in [*method.encoder.parameters(), *method.head.parameters()]:
            p.add_(1)
    method.after_step(0.75)
    moved = 1 - (0.9 if queue else cosine(0.75, 0.9, 1.0))
    for p, start in zip(method.teacher.parameters(), before, strict=True):
        assert torch.allclose(p, start + moved, atol=1e-5)


def test_wrong_batches_are_told_so():
    with pytest.raises(ValueError, match="two are needed, got 1"):
        moco()({"views": [draw(2, 9, 3)]})
    with pytest.raises(ValueError, match="with 1 masks"):
        moco()({**views(), "valid": views()["valid"][:1]})
