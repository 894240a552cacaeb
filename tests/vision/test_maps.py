"""Maps of features and of attention: against explicit loops, by hand, and on any grid."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, Vectors, Wrapped
from partwhole.core.transformer import TransformerEncoder
from partwhole.vision.backbone import Backbone
from partwhole.vision.embed import Patches
from partwhole.vision.maps import attention, attention_mask, centre_box, feature_map, fitted, jaccard, jaccard_of, step

quick = settings(max_examples=25, deadline=None, derandomize=True)


def vit(*, cls: bool = True, registers: int = 0, rope: float | None = None, patch: int = 8) -> TransformerEncoder:
    torch.manual_seed(0)
    embed = Patches(16, size=32, patch=patch)
    return TransformerEncoder(embed, dim=16, depth=2, heads=2, cls=cls, registers=registers, rope=rope)


def images(H: int = 32, W: int = 48, B: int = 2) -> Tensor:
    return torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def timm_vit() -> Backbone:
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", size=32)


# ------------------------------------------------------------------ features


def test_tokens_of_a_transformer_lie_row_by_row_without_special_ones():
    encoder, x = vit(registers=3), images(40, 27)
    found, tokens = feature_map(encoder, x), encoder(x)
    assert found.shape == (2, 16, 5, 3)
    for row in range(5):
        for column in range(3):
            assert torch.equal(found[:, :, row, column], tokens[:, 1 + row * 3 + column])


def test_a_change_of_the_image_changes_the_map_there():
    """Of a CNN without much depth, and of a patch embedding alone: the place of a change is found on the map."""
    encoder = Wrapped(nn.Conv2d(3, 16, 8, stride=8), 16)
    x = images(32, 64)
    y = x.clone()
    y[:, :, 8:16, 40:48] += 1
    changed = (feature_map(encoder, x) != feature_map(encoder, y)).any(1)
    assert changed[0].nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_the_map_of_a_network_of_timm_holds_its_tokens(name):
    torch.manual_seed(0)
    encoder = Backbone(name, size=32).eval()
    with torch.no_grad():
        x = images(64, 96)
        found = feature_map(encoder, x)
        assert found.shape[1] == encoder.dim
        assert found.shape[2:] == ((4, 6) if "vit" in name else (2, 3))
        torch.testing.assert_close(found.flatten(2).mT, encoder(x)[:, encoder.special :])


def test_the_map_of_a_network_with_channels_last():
    encoder = Backbone("swin_tiny_patch4_window7_224", size=224).eval()
    with torch.no_grad():
        x = images(224, 224, 1)
        assert torch.equal(feature_map(encoder, x).flatten(2).mT, encoder(x))


def test_gradients_flow_and_the_mode_stays():
    encoder = vit()
    assert feature_map(encoder, images()).requires_grad
    attention(encoder, images())
    step(encoder, 32)
    assert encoder.training


def test_tokens_without_places_are_told():
    points = TransformerEncoder(Vectors(3, 16), dim=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="how its tokens lie"):
        feature_map(points, torch.randn(1, 4, 3))
    with pytest.raises(ValueError, match="a map"):
        feature_map(Wrapped(nn.Flatten(), 48), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(("encoder", "pixels"), [(vit(), 8), (Wrapped(nn.MaxPool2d(4), 3), 4)])
def test_the_step_of_a_map(encoder: Encoder, pixels: int):
    encoder.register_parameter("at", nn.Parameter(torch.zeros(1)))  # it is looked up where it lies
    assert step(encoder, 32) == pixels


# ------------------------------------------------------------------ attention


def naive(encoder: TransformerEncoder, x: Tensor) -> Tensor:
    """Softmax of q k, by loops, from the last block's input as a hook finds it."""
    block, seen = encoder.trunk.blocks[-1], []
    hook = block.attention.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        encoder.eval()(x)
    hook.remove()
    tokens, heads, width = seen[0], encoder.heads, encoder.dim // encoder.heads
    w, b = block.attention.qkv.weight.detach(), block.attention.qkv.bias.detach()
    out = torch.zeros(len(x), heads, tokens.shape[1])
    for i in range(len(x)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q = w[:16][part] @ tokens[i, 0] + b[:16][part]
            score = [float(q @ (w[16:32][part] @ t + b[16:32][part])) / width**0.5 for t in tokens[i]]
            out[i, head] = torch.tensor(score).softmax(0)
    return out


@pytest.mark.parametrize("registers", [0, 2])
def test_attention_is_the_softmax_of_q_k(registers):
    encoder, x = vit(registers=registers), images()
    for block in encoder.trunk.blocks:  # so that it is not nearly even
        nn.init.normal_(block.attention.qkv.weight, std=0.5)
    found = attention(encoder, x)
    assert found.shape == (2, 2, 4, 6)
    torch.testing.assert_close(found.flatten(2), naive(encoder, x)[:, :, 1 + registers :], rtol=1e-4, atol=1e-6)
    assert found.std() > 0.01


def test_attention_with_turned_queries_is_that_of_the_block():
    """With rope, by what the block gives: values of one-hot places say how much was taken of each."""
    encoder, x = vit(rope=100.0, registers=1).eval(), images()
    layer = encoder.trunk.blocks[-1].attention
    found, seen = attention(encoder, x), []
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given))
    encoder(x)
    hook.remove()
    q, k, _ = layer.parts(seen[0][0], seen[0][3])
    eye = torch.eye(q.shape[2]).expand(2, 2, -1, -1)
    taken = nn.functional.scaled_dot_product_attention(q, k, eye)[:, :, 0, 2:]
    torch.testing.assert_close(found.flatten(2), taken, rtol=1e-4, atol=1e-6)


def test_padding_takes_no_attention_and_changes_none():
    encoder = TransformerEncoder(Vectors(3, 16), dim=16, depth=1, heads=2, cls=True)
    x = torch.randn(2, 5, 3)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = encoder.attention(x, valid=valid)
    assert (found[1, :, 3:] == 0).all()
    torch.testing.assert_close(found[1:, :, :3], encoder.attention(x[1:, :3]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_attention_of_networks_of_timm_is_what_their_block_takes(name):
    torch.manual_seed(0)
    patch = 14 if "14" in name else 16
    encoder = Backbone(name, size=2 * patch)
    x = images(2 * patch, 3 * patch)
    found = attention(encoder, x)
    assert found.shape == (2, 3, 2, 3)
    assert (found.sum((-2, -1)) < 1).all()
    assert (found > 0).all()
    layer = encoder.net.blocks[-1].attn
    assert layer.fused_attn
    assert not layer.attn_drop._forward_pre_hooks
    assert encoder.training


def test_attention_of_a_vit_of_timm_against_its_formula(timm_vit):
    x, seen = images(), []
    layer = timm_vit.eval().net.blocks[-1].attn
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        timm_vit(x)
        hook.remove()
        q, k, _ = layer.qkv(seen[0]).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        expected = (q[:, :, :1] @ k.mT / 8).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(attention(timm_vit, x).flatten(2), expected)


def test_networks_without_a_class_token_are_told():
    for encoder in (Backbone("resnet10t", size=32), Wrapped(nn.Conv2d(3, 8, 3), 8)):
        with pytest.raises(ValueError, match="no class token"):
            attention(encoder, images())
    with pytest.raises(ValueError, match="cls"):
        attention(vit(cls=False), images())


# ------------------------------------------------------------------ masks


@quick
@given(st.lists(st.integers(0, 20), min_size=6, max_size=6).filter(any), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_a_mask_is_a_smallest_set_that_holds_the_mass(numbers, mass):
    a = torch.tensor(numbers, dtype=torch.float32).view(2, 3)
    kept = attention_mask(a, mass)
    assert a[kept].sum() >= mass * a.sum()
    best = min(k for k in range(1, 7) if sum(sorted(numbers)[-k:]) >= mass * sum(numbers))
    assert int(kept.sum()) == best
    assert torch.equal(kept, attention_mask(a * 3, mass))


def test_masks_of_heads_are_each_their_own():
    a = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = attention_mask(a)
    for i in range(2):
        for j in range(3):
            assert torch.equal(found[i, j], attention_mask(a[i, j]))
    with pytest.raises(ValueError, match="share"):
        attention_mask(a, 60)


def test_jaccard_by_hand():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    truth = torch.tensor([[0, 1, 1], [1, 0, 0]]).bool()
    assert jaccard(mask, truth).item() == 0.25
    assert jaccard(mask, truth, torch.tensor([[1, 1, 1], [0, 0, 0]]).bool()).item() == pytest.approx(1 / 3)
    assert jaccard(mask, mask).item() == 1
    assert jaccard(mask & ~mask, mask & ~mask).item() == 1
    assert jaccard(torch.stack([mask, truth]), truth).tolist() == [0.25, 1]


def sample(H: int = 24, W: int = 40, seed: int = 0) -> dict[str, Tensor]:
    image = torch.randint(0, 256, (3, H, W), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    mask = torch.zeros(H, W, dtype=torch.int64)
    mask[H // 4 : H // 2, W // 4 : W // 2] = 1 + seed
    return {"image": image, "mask": mask}


def test_jaccard_of_is_its_parts():
    encoder, samples = vit(), [sample(24, 40), sample(32, 32, 1)]
    samples[1]["mask"][:2] = 255
    empty = {**sample(), "mask": torch.zeros(24, 40, dtype=torch.int64)}
    found = jaccard_of(encoder, [*samples, empty], size=32, draws=2)
    best, mean = [], []
    for s in samples:
        heads = attention_mask(attention(encoder, fitted(s["image"], 32, 8)[None])[0])
        H, W = s["mask"].shape
        scores = []
        for head in heads:
            both = either = 0
            for y in range(H):
                for x in range(W):
                    a = bool(head[int((y + 0.5) / H * head.shape[0]), int((x + 0.5) / W * head.shape[1])])
                    b = 0 < int(s["mask"][y, x]) < 255
                    counts = int(s["mask"][y, x]) != 255
                    both, either = both + (a and b and counts), either + ((a or b) and counts)
            scores.append(both / either)
        best.append(max(scores))
        mean.append(sum(scores) / len(scores))
    assert found["encoder"]["best head"].mean == pytest.approx(sum(best) / 2)
    assert found["encoder"]["mean of heads"].mean == pytest.approx(sum(mean) / 2)
    assert found["encoder"]["best head"].count == 2
    assert found["random"]["best head"].mean != found["encoder"]["best head"].mean
    assert found == jaccard_of(encoder, samples, size=32, draws=2)


def test_the_best_centre_box_is_found():
    truth = torch.zeros(40, 20, dtype=torch.bool)
    truth[10:30, 5:15] = True
    found = centre_box([(truth, torch.ones_like(truth))])
    assert (found.mean, found.count) == (1.0, 1)


def test_what_cannot_be_measured_is_told():
    nothing = {**sample(), "mask": torch.zeros(24, 40, dtype=torch.int64)}
    with pytest.raises(ValueError, match="none of 1 samples"):
        jaccard_of(vit(), [nothing], size=32)
    with pytest.raises(ValueError, match="mask"):
        jaccard_of(vit(), [{"image": nothing["image"]}], size=32)
    with pytest.raises(ValueError, match="as large"):
        jaccard_of(vit(), [{**nothing, "mask": torch.ones(4, 4)}], size=32)
    with pytest.raises(ValueError, match="draws"):
        jaccard_of(vit(), [sample()], size=32, draws=0)


@quick
@given(st.integers(5, 90), st.integers(5, 90), st.sampled_from([1, 8, 14]))
def test_an_image_keeps_its_proportions(H, W, pixels):
    x = fitted(torch.zeros(3, H, W, dtype=torch.uint8), 56, pixels)
    assert x.shape[1] % pixels == x.shape[2] % pixels == 0
    assert min(x.shape[1:]) == 56
    assert abs(x.shape[2] - 56 * W / min(H, W)) <= pixels / 2
    assert abs(x.shape[1] - 56 * H / min(H, W)) <= pixels / 2
    torch.testing.assert_close(x[:, 0, 0], -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))


def test_only_uint8_images_are_fitted():
    with pytest.raises(ValueError, match="uint8"):
        fitted(torch.zeros(3, 8, 8), 8)
