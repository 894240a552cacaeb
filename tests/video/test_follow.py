"""Masks and joints to the grid and back, and followed through videos by encoders and functions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from partwhole.core.transformer import TransformerEncoder
from partwhole.video.follow import follow, follow_points, maps, seen_size
from partwhole.video.labels import heat_maps, objects, to_grid, to_ids, to_points
from partwhole.video.measure import Following, copied, measure, pixels
from partwhole.video.metrics import davis
from partwhole.video.protocol import PROTOCOLS, Protocol
from partwhole.vision.embed import Patches

SMALL = Protocol(context=3, radius=4, size=0, temperature=0.05)


class Clip:
    """A video in memory that counts how often a frame is read."""

    fps, name = 24.0, "clip"

    def __init__(self, x, name="clip"):
        self.x, self.name, self.size, self.read = x, name, tuple(x.shape[-2:]), []

    def __len__(self):
        return len(self.x)

    def frames(self, indices):
        self.read += list(indices)
        return self.x[list(indices)]


def moving(T=8, H=48, W=64, seed=0):
    """Two textured squares that go their ways over a textured ground: a video and its masks."""
    g = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (3, 3, H, W), generator=g, dtype=torch.uint8)
    frames, ids = [], []
    for t in range(T):
        frame, mask = colours[0].clone(), torch.zeros(H, W, dtype=torch.int64)
        for i, (top, left) in enumerate([(8, 8 + 2 * t), (24 + t, 40 - 2 * t)], 1):
            box = (slice(top, top + 12), slice(left, left + 14))
            frame[:, *box], mask[box] = colours[i, :, :12, :14], i
        frames.append(frame)
        ids.append(mask)
    return Clip(torch.stack(frames)), Clip(torch.stack(ids))


def test_a_moving_object_is_followed_by_what_tells_it_apart():
    """The network sees only what object each pixel is of: the features that every encoder would have."""
    video, masks = moving(T=10)
    stepping = iter(range(0, 10, 8))

    def knowing(x):
        start = next(stepping)
        ids = masks.x[start : start + len(x)]
        return F.avg_pool2d(F.one_hot(ids, 3).permute(0, 3, 1, 2).float(), 2)

    found = follow(knowing, video, masks, SMALL)
    assert found.shape == (10, 48, 64)
    assert found.dtype == torch.int16
    assert davis(found, masks.x).numbers["J"] > 0.9
    assert davis(copied(video, masks), masks.x).numbers["J"] < 0.45


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pixels_of_a_static_video_do_not_drift(name):
    video, masks = moving()
    still = Clip(video.x[:1].expand(12, -1, -1, -1)), Clip(masks.x[:1].expand(12, -1, -1))
    found = follow(lambda x: pixels(x, 4), *still, replace(PROTOCOLS[name], size=48, radius=4))
    assert davis(found, still[1].x).region[0][-1] > 0.8
    for one in (1, 2):
        where = [torch.nonzero(m == one).float().mean(0) for m in (found[-1], found[1])]
        torch.testing.assert_close(where[0], where[1], atol=0.1, rtol=0)


@pytest.mark.parametrize("protocol", [SMALL, replace(SMALL, dtype="bfloat16")])
def test_frames_are_read_once_and_in_batches(protocol):
    video, masks = moving()
    sizes = []

    def net(x):
        sizes.append(len(x))
        return pixels(x)

    follow(net, video, masks, protocol, batch=3)
    assert sizes == [3, 3, 2]
    assert video.read == list(range(8))


def test_bfloat16_is_told():
    said = []

    class Told:
        step = evaluated = staticmethod(lambda *a: None)
        say = staticmethod(said.append)

    video, masks = moving()
    follow(pixels, video, masks, replace(SMALL, dtype="bfloat16"), watch=Told())
    assert len(said) == 1
    assert said[0].startswith("bfloat16 changes ")


def test_an_encoder_is_in_eval_mode_and_left_as_it_was():
    encoder = TransformerEncoder(Patches(32, size=32, patch=8), dim=32, depth=1, heads=1, cls=True)
    video, masks = moving()
    encoder.train()
    found = follow(encoder, video, masks, replace(SMALL, radius=2))
    assert encoder.training
    assert set(found.unique().tolist()) <= {0, 1, 2}
    assert next(maps(encoder, video, SMALL)).shape == (32, 6, 8)
    assert not next(maps(encoder, video, SMALL)).requires_grad
    dropping = nn.Sequential(nn.PixelUnshuffle(8), nn.Dropout(0.9)).train()
    assert torch.equal(next(maps(dropping, video, SMALL)), next(maps(pixels, video, SMALL)))
    assert dropping.training


@settings(max_examples=50, deadline=None)
@given(st.integers(24, 700), st.integers(24, 700), st.sampled_from([8, 14, 16]))
def test_sizes_that_encoders_see(H, W, side):
    encoder = TransformerEncoder(Patches(8, size=2 * side, patch=side), dim=8, depth=1, heads=1)
    for sides in ("nearest", "up"):
        high, wide = seen_size(encoder, (H, W), Protocol(size=480, sides=sides))
        assert high % side == wide % side == 0
        assert abs(min(high, wide) - 480) < side
        assert sides != "up" or min(high, wide) >= 480
    assert seen_size(pixels, (H, W), Protocol(size=0)) == (H, W)


def test_sizes_of_the_published_protocols():
    sizes = {name: seen_size(pixels, (480, 854), p) for name, p in PROTOCOLS.items()}
    assert sizes == {"crw": (480, 854), "dino": (480, 832), "dinov3": (960, 1708), "vfs": (480, 854)}
    vit = TransformerEncoder(Patches(8, size=32, patch=16), dim=8, depth=1, heads=1)
    assert seen_size(vit, (480, 854), PROTOCOLS["dinov3"]) == (960, 1712)
    assert seen_size(vit, (854, 480), PROTOCOLS["dino"]) == (832, 480)


def test_masks_come_to_the_grid_as_pil_and_go_back():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (37, 53), generator=g)
    known = objects(torch.where(ids == 3, 255, ids))
    assert known == [0, 1, 2]
    small = to_grid(ids.clamp(max=2), known, (9, 14), Protocol(down="nearest"))
    pil = Image.fromarray(ids.clamp(max=2).byte().numpy()).resize((14, 9), Image.Resampling.NEAREST)
    assert torch.equal(small.argmax(0), torch.tensor(list(pil.tobytes())).view(9, 14))
    for down in ("nearest", "bilinear"):
        shares = to_grid(torch.where(ids == 3, 255, ids), known, (9, 14), Protocol(down=down))  # 255 is background
        torch.testing.assert_close(shares.sum(0), torch.ones(9, 14))
    block = torch.zeros(40, 60, dtype=torch.int64)
    block[8:24, 16:40] = 7
    for p in PROTOCOLS.values():
        maps_ = to_grid(block, [0, 7], (10, 15), p)
        back = to_ids(maps_, [0, 7], (40, 60), (40, 60), p).long()
        assert (back != block).sum() <= (4 if p.up == "bilinear" else 0)  # its corners
        torch.testing.assert_close(torch.nonzero(back).float().mean(0), torch.nonzero(block).float().mean(0))


def test_labels_stretch_and_ties_go_to_the_first():
    maps_ = torch.tensor([[[0.6, 0.7]], [[0.4, 0.3]]])
    plain, stretched = (to_ids(maps_, [0, 5], (1, 2), (1, 2), Protocol(stretch=s)) for s in (False, True))
    assert plain.tolist() == [[0, 0]]
    assert stretched.tolist() == [[5, 0]]
    assert to_ids(torch.full((3, 2, 2), 0.5), [0, 3, 9], (2, 2), (2, 2), Protocol(stretch=True)).eq(0).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(4, 30), st.integers(4, 30))
def test_joints_to_the_grid_and_back(y, x, h, w):
    size = (8 * h, 8 * w)
    point = torch.tensor([[x * (size[1] - 1), y * (size[0] - 1)]])
    back = to_points(heat_maps(point, size, (h, w), sigma=0.7), size, topk=9)
    edge = min(point.min(), *(torch.tensor(size[::-1]) - point[0]))
    torch.testing.assert_close(
        back, point, atol=2.0 if edge > 16 else 5.0, rtol=0
    )  # a map that is cut off leans inwards


def test_joints_are_followed_and_lost():
    video, _ = moving(T=6)
    still = Clip(video.x[:1].expand(6, -1, -1, -1))
    points = torch.tensor([[20.0, 17.0], [torch.nan, 3.0], [900.0, 3.0], [37.5, 30.0]])
    found = follow_points(lambda x: pixels(x, 4), still, points, SMALL)
    assert found.shape == (6, 4, 2)
    torch.testing.assert_close(found[:, [0, 3]], points[[0, 3]].expand(6, -1, -1), atol=2.0, rtol=0)
    assert found[1:, 1:3].isnan().all()


def test_measuring_is_resumed_and_repeated():
    samples = [{"video": v, "masks": m} for v, m in (moving(6, seed=s) for s in range(2))]
    samples[1]["video"].name = "other"
    samples[1]["masks"].x.clamp_(max=1)
    bad = [{"video": Clip(samples[0]["video"].x[:2], "short"), "masks": Clip(samples[0]["masks"].x[:2])},
           {"video": Clip(samples[0]["video"].x, "empty"), "masks": Clip(0 * samples[0]["masks"].x)}]  # fmt: skip
    encoder = TransformerEncoder(Patches(16, size=32, patch=8), dim=16, depth=1, heads=1)
    options = Following(preset="own", own=replace(SMALL, radius=2), draws=2)
    kept = []

    def keep(results):
        kept.append(len([c for draws in results["rows"].values() for d in draws for c in d]))
        if len(kept) == 4:
            raise KeyboardInterrupt

    begun = {}
    with pytest.raises(KeyboardInterrupt):
        measure(encoder, samples + bad, options, keep=lambda r: (begun.update(r), keep(r)))
    whole = measure(encoder, samples + bad, options)
    assert [p[0] for p in whole["problems"]] == ["short", "empty"]
    kept.clear()
    again = measure(encoder, samples + bad, options, keep=lambda r: kept.append(1), begun=begun)
    assert again == whole
    assert len(kept) == 10 - 4
    assert whole["sequences"] == ["clip", "other"]
    assert set(whole["rows"]) == set(whole["mean"]) == {"copy", "pixels", "random", "encoder"}
    assert len(whole["rows"]["random"]) == 2
    copy = [j for s in samples for j in davis(copied(s["video"], s["masks"]), s["masks"].x).each["J"]]
    assert len(copy) == 3  # means are over objects, not over videos
    assert whole["mean"]["copy"]["J"] == pytest.approx(sum(copy) / 3)
    other = measure(encoder, samples, replace(options, own=SMALL), begun=begun)
    assert other["rows"]["encoder"] != whole["rows"]["encoder"]


def test_bad_input_is_told():
    video, masks = moving()
    with pytest.raises(ValueError, match=r"masks are \(48, 60\) and frames \(48, 64\)"):
        follow(pixels, video, Clip(masks.x[:, :, :60]), SMALL)
    with pytest.raises(ValueError, match="no object"):
        follow(pixels, video, Clip(0 * masks.x), SMALL)
    with pytest.raises(ValueError, match="no mask"):
        follow(pixels, video, Clip(masks.x[:0]), SMALL)
    with pytest.raises(ValueError, match="number them from 1"):
        follow(pixels, video, Clip(masks.x * 40_000), SMALL)
    with pytest.raises(ValueError, match=r"maps \(B, D, h, w\) are needed"):
        follow(lambda x: x.flatten(1), video, masks, SMALL)
    with pytest.raises(TypeError, match="leave random out"):
        measure(pixels, [{"video": video, "masks": masks}], Following())
    with pytest.raises(ValueError, match="none of 1 can be used"):
        measure(pixels, [{"video": video}], Following(arms=("copy",)))


def test_three_hundred_objects():
    ids = (torch.arange(48 * 64).view(1, 48, 64) // 10).clamp(max=300).expand(4, -1, -1)
    video, _ = moving(T=4)
    found = follow(lambda x: pixels(x, 4), video, Clip(ids), SMALL)
    assert len(found[1].unique()) > 50
