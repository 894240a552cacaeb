"""ComponentContrast and SegmentParts: the contract of a method, and what their batches mean."""

import pytest
import torch

from partwhole.core.encoder import Vectors
from partwhole.core.testing import check_method
from partwhole.core.transformer import TransformerEncoder
from partwhole.shape3d.acd import ComponentContrast
from partwhole.shape3d.segment import SegmentParts

D = 16
MASK = torch.tensor([[True, True, False], [False, False, True]])


def encoder() -> TransformerEncoder:
    return TransformerEncoder(Vectors(3, D), dim=D, depth=1, heads=2)


def batch(seed: int = 0, shapes: int = 4, points: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    category = torch.arange(shapes) % 2
    part = torch.where(category[:, None] == 0, torch.arange(points) % 2, 2)
    return {
        "x": torch.randn(shapes, points, 3, generator=generator),
        "component": torch.arange(points).expand(shapes, -1) // 4,
        "part": part,
        "category": category,
        "seed": torch.arange(shapes),
    }


def components(b: dict[str, torch.Tensor], views: int = 2) -> dict:
    """The batch of ComponentContrast: the points as they are, then mirrored."""
    out = {"views": [b["x"], -b["x"]][:views], "component": [b["component"]] * views, "seed": b["seed"]}
    return {**out, "valid": [b["valid"]] * views} if "valid" in b else out


def ragged(b: dict[str, torch.Tensor], extra: int = 5) -> dict[str, torch.Tensor]:
    """The same shapes with padding that holds nonsense."""
    pad = torch.nn.functional.pad
    n = b["x"].shape[1]
    valid = (torch.arange(n + extra) < n).expand(len(b["x"]), -1)
    out = {**b, "x": pad(b["x"], (0, 0, 0, extra), value=7.0), "valid": valid}
    for key in ("component", "part"):
        out[key] = pad(b[key], (0, extra), value=1)
    return out


@pytest.mark.parametrize("loss", ["prototype", "pair"])
@pytest.mark.parametrize("views", [1, 2])
def test_component_contrast_keeps_the_contract(loss, views):
    check_method(lambda: ComponentContrast(encoder(), dim=8, loss=loss), components(ragged(batch()), views))


@pytest.mark.parametrize("loss", ["prototype", "pair"])
def test_clusters_keep_the_contract(loss):
    check_method(lambda: ComponentContrast(encoder(), dim=8, loss=loss, clusters=3), components(ragged(batch())))


def test_clusters_take_the_components_that_every_view_has():
    """A component that one view lost has nothing to be compared with, and no component at all gives no loss."""
    torch.manual_seed(0)
    method = ComponentContrast(encoder(), dim=8, clusters=3).eval()
    b = components(batch())
    whole = method(b)["swapped"]
    b["component"] = [b["component"][0], b["component"][1].masked_fill(b["component"][1] == 0, -1)]
    assert method(b)["swapped"] != whole
    b["component"] = [b["component"][0], torch.full_like(b["component"][1], -1)]
    assert method(b)["swapped"] == 0


def test_segment_parts_keeps_the_contract():
    check_method(lambda: SegmentParts(encoder(), MASK), ragged(batch()))


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (lambda: ComponentContrast(encoder(), dim=8), components),
        (lambda: ComponentContrast(encoder(), dim=8, loss="pair"), components),
        (lambda: ComponentContrast(encoder(), dim=8, clusters=3), components),
        (lambda: SegmentParts(encoder(), MASK), dict),
    ],
)
def test_padding_changes_nothing(make, form):
    torch.manual_seed(0)
    method = make().double().eval()
    b = {k: v.double() if v.is_floating_point() else v for k, v in batch().items()}
    plain, padded = method(form(b))["loss"], method(form(ragged(b)))["loss"]
    assert torch.allclose(plain, padded, rtol=1e-10, atol=0)


def value(**options) -> float:
    torch.manual_seed(0)
    return ComponentContrast(encoder(), **{"dim": 8, **options})(components(batch()))["loss"].item()


@pytest.mark.parametrize("change", [{"loss": "pair"}, {"temperature": 0.5}, {"dim": 24}])
def test_P11_every_option_changes_the_loss(change):
    assert value() != value(**change)


def test_P11_the_margin_changes_the_pair_loss():
    assert value(loss="pair", margin=0.5) != value(loss="pair", margin=-0.5)


def test_a_second_view_that_looks_different_raises_the_loss():
    torch.manual_seed(0)
    method, b = ComponentContrast(encoder(), dim=8).eval(), batch()
    one = method(components(b, 1))["loss"]
    twice = method({**components(b), "views": [b["x"], b["x"]]})["loss"]
    assert torch.allclose(one, twice, rtol=1e-5)
    assert not torch.allclose(one, method(components(b))["loss"], rtol=1e-3)


def test_several_levels_take_negatives_across_the_coarsest_only():
    torch.manual_seed(0)
    method = ComponentContrast(encoder(), dim=8).eval()
    b = batch()
    fine = b["component"]
    one_coarse = torch.stack([torch.zeros_like(fine), fine], 1)  # all in one coarse component: no negatives are left
    assert method(components({**b, "component": one_coarse}))["loss"].item() == 0
    same = torch.stack([fine, fine], 1)
    assert torch.allclose(method(components({**b, "component": same}))["loss"], method(components(b))["loss"])


def test_a_segmenter_learns_what_it_is_shown():
    torch.manual_seed(0)
    method = SegmentParts(encoder(), MASK)
    b = batch(points=8)
    b["part"] = torch.where(b["category"][:, None] == 0, (b["x"][..., 0] > 0).long(), 2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        method(b)["loss"].backward()
        optimizer.step()
    assert (method.logits(b["x"], b["category"]).argmax(-1) == b["part"]).float().mean() > 0.95


def test_points_without_a_label_do_not_count():
    torch.manual_seed(0)
    method = SegmentParts(encoder(), MASK).eval()
    b = batch()
    unknown = {**b, "part": torch.full_like(b["part"], -1)}
    assert method(unknown)["loss"].item() == 0
