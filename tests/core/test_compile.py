"""Every method is one graph to torch.compile, and one for all steps: losses, gradients and state are as without it (by
the tracer alone, without a compiler)."""

import copy
from itertools import islice

import pytest
import torch
from zoo import GENERIC, make

from partwhole.core.masks import indices

METHODS = (*GENERIC, "moco-batch", "byol-batchnorm", "ibot-batchnorm", "acd", "joint")
QUICK = {"simsiam", "barlow", "vicreg", "mae", "beit", "data2vec", "supervised", "fixmatch"}
LISTED = {"mae": ["keep"], "beit": ["hidden"], "data2vec": ["hidden"], "ijepa": ["keep", "targets"]}


def listed(name, batch):
    """Masks whose number of tokens shapes a network's input as indices, of which a graph knows how many there are."""
    if name == "mae":
        batch = {**batch, "keep": ~batch.pop("hidden") & batch["valid"]}
    return {k: indices(v, 5) if k in LISTED.get(name, ()) else v for k, v in batch.items()}


def step(method, net, batch):
    """What one batch gives, its gradients, and the state after it, of a method and what it is called by."""
    method.zero_grad()
    out = net(batch)
    out["loss"].backward()
    net.after_step(0.6)
    grads = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in out.items()}, grads, copy.deepcopy(method.state_dict())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in METHODS])
def test_a_method_is_one_graph_for_all_steps(name):
    torch.compiler.reset()
    method, stream = make(name)
    method.after_step(0.4)  # all of it is at work: DINOv3's Gram teacher, SwAV's queue
    other = copy.deepcopy(method)
    net, stance = torch.compile(other, backend="aot_eager", fullgraph=True), "default"
    for batch in islice(stream(0), 2):
        batch = listed(name, batch)
        expected = step(method, method, batch)
        with torch.compiler.set_stance(stance):
            got = step(other, net, batch)
        for a, b in zip(expected, got, strict=True):
            assert a.keys() == b.keys()
            for k in a:
                assert torch.allclose(a[k].double(), b[k].double(), rtol=1e-11, atol=1e-12), k
        stance = (
            "fail_on_recompile"  # the second batch holds and hides other numbers of tokens, and the state has moved
        )
