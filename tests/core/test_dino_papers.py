"""iBOT, DINOv2 and DINOv3 by plain arithmetic from the papers, thing by thing and token by token, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from common import cross_entropy, softmax
from torch import Tensor, nn

from partwhole.core.encoder import Vectors
from partwhole.core.method import Batch
from partwhole.core.methods.dinov2 import DINOv2
from partwhole.core.methods.dinov3 import DINOv3
from partwhole.core.methods.ibot import IBOT
from partwhole.core.transformer import TransformerEncoder

D, B, L = 12, 5, 9
KINDS = {"ibot": IBOT, "dinov2": DINOv2, "dinov3": DINOv3}


def make(kind: str, **options):
    net = TransformerEncoder(Vectors(3, D, length=L), dim=D, depth=1, heads=2, cls=True, registers=2)
    return KINDS[kind](net, **{"prototypes": 10, "hidden": D, "bottleneck": 5, **options}).double()


def exact(kind: str, **options):
    """A method whose student has moved away from its teacher, and a batch."""
    torch.manual_seed(0)
    method = make(kind, **options)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = {
        "views": [torch.randn(B, L, 3, dtype=torch.float64) for _ in range(2)],
        "crops": [torch.randn(B, n, 3, dtype=torch.float64) for n in (4, 4, 6)],
        "hidden": [torch.rand(B, L) < 0.4 for _ in range(2)],
    }
    batch["hidden"][0][2] = False
    return method, batch


def tokens(net: nn.Module, x: Tensor, **more) -> Tensor:
    """Those of one thing alone, in float64."""
    return net(x[None], **more)[0]


def spread_evenly(logits: Tensor, temperature: float) -> Tensor:
    """Sinkhorn and Knopp as the authors of DINOv2 write it: columns to 1 / K, rows to 1 / N, three times."""
    q = (logits / temperature).exp()
    q = q / q.sum()
    N, K = q.shape
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / K
        q = q / q.sum(1, keepdim=True) / N
    return q * N


def arithmetic(method, batch: Batch, *, sinkhorn: bool) -> tuple[Tensor, Tensor, Tensor]:
    """DINO's loss, iBOT's and KoLeo's, thing by thing, for an encoder with a CLS token and batches without padding."""
    core, net = method.distillation, method.encoder
    teacher, (top, low) = core.teacher.chain[0], (core.heads[0], core.heads[-1])
    teacher_top, teacher_low = core.teacher_heads[0].chain[0], core.teacher_heads[-1].chain[0]
    V, temperature = len(batch["views"]), core.whole_targets.temperature
    students, teachers, wholes, guesses, wanted, owner = [], [], [], [], [], []
    for v in range(V):
        for b in range(B):
            x, h = batch["views"][v][b], batch["hidden"][v][b]
            s, t = tokens(net, x, hidden=h[None], token=core.mask_token), tokens(teacher, x)
            wholes.append(s[0])
            students.append(top(s[:1])[0])
            teachers.append(teacher_top(t[:1])[0])
            for place in range(len(h)):
                if h[place]:
                    guesses.append(low(s[1 + place][None])[0])
                    wanted.append(teacher_low(t[1 + place][None])[0])
                    owner.append((v, b))
    for crop in batch.get("crops", []):
        students += [top(tokens(net, x)[:1])[0] for x in crop]
    if sinkhorn:
        targets = list(spread_evenly(torch.stack(teachers), temperature))
        token_targets = list(spread_evenly(torch.stack(wanted), temperature))
    else:
        targets = [softmax((x - core.whole_targets.center.value) / temperature) for x in teachers]
        token_targets = [softmax((x - core.token_targets.center.value) / temperature) for x in wanted]

    S = len(students) // B
    pairs = [(s, t) for s in range(S) for t in range(V) if s != t]
    dino = sum(
        cross_entropy(targets[t * B + b], students[s * B + b]) / (len(pairs) * B) for s, t in pairs for b in range(B)
    )
    ibot = sum(
        cross_entropy(t, g) / owner.count(o) / (V * B) for t, g, o in zip(token_targets, guesses, owner, strict=True)
    )
    far = torch.zeros((), dtype=torch.float64)
    for v in range(V):
        u = [F.normalize(w, dim=0) for w in wholes[v * B : v * B + B]]
        for i in range(B):
            far = far - (min((u[i] - u[j]).norm() for j in range(B) if j != i) + 1e-4).log() / B
    return dino, ibot, far  # type: ignore[return-value]


@pytest.mark.parametrize("shared", [True, False])
def test_ibot_is_dino_on_the_whole_and_on_hidden_tokens(shared):
    method, batch = exact("ibot", shared=shared)
    for targets in (method.distillation.whole_targets, method.distillation.token_targets):
        targets.center.value.normal_()
    out = method(batch)
    dino, ibot, _ = arithmetic(method, batch, sinkhorn=False)
    assert out["whole"].item() == pytest.approx(dino.item(), rel=1e-9)
    assert out["hidden"].item() == pytest.approx(ibot.item(), rel=1e-9)
    assert out["loss"].item() == pytest.approx((dino + ibot).item(), rel=1e-9)
    assert (method.distillation.heads[0] is method.distillation.heads[-1]) == shared


def test_dinov2_balances_targets_and_adds_koleo_for_every_view():
    method, batch = exact("dinov2")
    out = method(batch)
    dino, ibot, far = arithmetic(method, batch, sinkhorn=True)
    assert out["koleo"].item() == pytest.approx(far.item(), rel=1e-9)
    assert out["loss"].item() == pytest.approx((dino + ibot + 0.1 * far).item(), rel=1e-9)
    assert out["entropy_of_mean"].item() == pytest.approx(math.log(10), rel=0.05), "all prototypes are used"


def test_dinov3_adds_gram_anchoring_to_an_earlier_teacher():
    method, batch = exact("dinov3", start=0.5, refresh=0.2)
    assert "gram" not in method(batch)
    method.after_step(0.5)
    out = method(batch)
    dino, ibot, far = arithmetic(method, batch, sinkhorn=True)
    gram = torch.zeros((), dtype=torch.float64)
    for x, h in zip(batch["views"], batch["hidden"], strict=True):
        for b in range(5):
            s = tokens(method.encoder, x[b], hidden=h[b][None], token=method.distillation.mask_token)[1:]
            t = tokens(method.gram_teacher.chain[0], x[b])[1:]
            s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
            gram = gram + sum((s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in range(9) for j in range(9)) / 81 / 10
    assert out["gram"].item() == pytest.approx(gram.item(), rel=1e-9)
    assert out["loss"].item() == pytest.approx((dino + ibot + 0.1 * far + 2 * gram).item(), rel=1e-9)


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_S2_the_gram_teacher_is_the_teacher_of_its_last_refreshment():
    method, _ = exact("dinov3", start=0.5, refresh=0.2, momentum=0.5)
    expected = weights(method.gram_teacher)
    for step in range(10):  # the teacher moves at every step
        progress = (step + 1) / 10
        with torch.no_grad():
            for p in method.encoder.parameters():
                p.add_(1)
        method.after_step(progress)
        if progress in (0.5, 0.7, 0.9):
            expected = weights(method.distillation.teacher)
        assert torch.equal(weights(method.gram_teacher), expected), progress
        assert method.anchored == (progress >= 0.5)
        again = make("dinov3", start=0.5, refresh=0.2)
        again.load_state_dict(method.state_dict())
        assert again.anchored == method.anchored, "a checkpoint says whether it has begun"
    with pytest.raises(ValueError, match="above 0; got 0"):
        make("dinov3", refresh=0)


def test_S1_the_centre_moves_once_a_step_by_the_mean_of_all_that_was_hidden():
    method, batch = exact("ibot", shared=False)
    core, V = method.distillation, 2
    start = core.token_targets.center.value.normal_().clone()
    teacher = torch.cat([core.teacher(x)[:, 1:] for x in batch["views"]])
    rows = core.teacher_heads[1](teacher[torch.cat(batch["hidden"])])
    for at in (slice(0, 2), slice(2, 5)):
        method({k: [x[at] for x in v] for k, v in batch.items()})
    assert torch.equal(core.token_targets.center.value, start)
    method.eval()(batch)
    method.after_step(0.5)
    assert torch.allclose(core.token_targets.center.value, 0.9 * start + 0.1 * rows.mean(0), atol=1e-12)
    assert len(rows) < V * 5 * 9


def test_no_token_but_hidden_ones_passes_a_head():
    method, batch = exact("dinov2")
    rows = []
    for head in (method.distillation.heads[1], method.distillation.teacher_heads[1].chain[0]):
        head.register_forward_hook(lambda m, given, out: rows.append(len(given[0])))
    method(batch)
    assert rows == [int(sum(h.sum() for h in batch["hidden"]))] * 2
