"""Films, strips and affinities: what is seen in them, not that they are there."""

import io

import av
import pytest
import torch
from PIL import Image

from partwhole.core.report import Page
from partwhole.video.protocol import Protocol
from partwhole.video.show import affinity_picture, film, gif, strip, write_mp4


class Clip:
    fps, name = 10.0, "clip"

    def __init__(self, T=5, H=31, W=47):
        self.x = torch.randint(0, 256, (1, 3, H, W), dtype=torch.uint8).expand(T, -1, -1, -1)
        self.size = (H, W)

    def __len__(self):
        return len(self.x)

    def frames(self, indices):
        return self.x[list(indices)]


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return Clip()


def ids(clip, *, at=1):
    out = torch.zeros(len(clip), *clip.size, dtype=torch.int16)
    out[:, 4:16, 4 * at : 4 * at + 12] = 1
    return out


def redness(picture):
    x = picture.float() / 255
    return x[0] - x[1:].mean(0)


def test_a_film_shows_what_was_found_and_what_is_true(clip):
    found, true = ids(clip), ids(clip, at=6)
    frames = list(film(clip, found, true, height=62))
    assert len(frames) == 5
    high, wide = frames[0].shape[1:]
    assert (high, wide % 2) == (62, 0)
    left, right = frames[2][:, :, : wide // 2 - 2], frames[2][:, :, wide // 2 + 2 :]
    for side, mask in ((left, found), (right, true)):
        inside = torch.nn.functional.interpolate(mask[:1, None].float(), side.shape[1:], mode="nearest-exact")[0, 0] > 0
        assert redness(side)[inside].mean() > 0.4 > 0.1 > redness(side)[~inside].mean()
    assert len(list(film(clip, found, every=2))) == 3


def test_an_mp4_can_be_read_again(clip, tmp_path):
    frames = list(film(clip, ids(clip), height=64))
    path = write_mp4(tmp_path / "new" / "film.mp4", frames, fps=10)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
        back = [torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1) for f in container.decode(video=0)]
    assert len(back) == 5
    assert (back[-1].float() - frames[-1].float()).abs().mean() < 12
    with pytest.raises(ValueError, match="there is none"):
        write_mp4(tmp_path / "none.mp4", [])
    assert not (tmp_path / "none.mp4").exists()


def test_a_gif_has_the_frames_and_the_colours(clip):
    frames = list(film(clip, ids(clip), height=40))
    for i, frame in enumerate(frames):
        frame[:, :6, 6 * i : 6 * i + 6] = 0  # or equal frames would be stored once
    with Image.open(io.BytesIO(gif(frames, fps=10, most=4))) as image:
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (4, 100, 0)
        image.seek(2)
        back = torch.tensor(list(image.convert("RGB").tobytes())).view(*frames[2].shape[1:], 3).permute(2, 0, 1)
    assert (back - frames[2].float()).abs().mean() < 15
    assert "data:image/gif;base64," in Page("films").picture(gif(frames), "a film").html()
    with pytest.raises(ValueError, match="there is none"):
        gif([])


def test_a_strip_has_a_row_for_each(clip):
    picture = strip(clip, {"found": ids(clip), "true": ids(clip, at=6)}, count=3, height=30)
    assert picture.caption == "clip, frames 0, 2, 4; rows: found, true."
    with Image.open(io.BytesIO(picture.png)) as image:
        assert image.size == (3 * 45 + 2 * 4, 2 * 30 + 4)
    with pytest.raises(ValueError, match="cannot be shown"):
        strip(clip, {"found": ids(clip)}, count=0)


def test_where_a_patch_goes(clip):
    """Each place is like itself alone, and moves by two places a frame."""
    h, w = 8, 12
    frames = iter(torch.eye(h * w).view(h * w, h, w).roll(2 * t, 2)[None] for t in range(5))
    protocol = Protocol(size=0, topk=1, radius=20)

    def net(x):
        return torch.cat([next(frames) for _ in x])

    picture = affinity_picture(net, clip, [(0.5, 0.1)], protocol, count=3, height=31)
    with Image.open(io.BytesIO(picture.png)) as image:
        sheet = torch.tensor(list(image.convert("RGB").tobytes())).view(image.height, image.width, 3).permute(2, 0, 1)
    for column in range(3):
        below = redness(sheet[:, 35:66, column * 51 : column * 51 + 47])
        y, x = divmod(int(below.argmax()), 47)
        assert abs((y + 0.5) / 31 - 4.5 / h) < 0.1
        assert abs((x + 0.5) / 47 - (1.5 + 4 * column) / w) < 0.08
    with pytest.raises(ValueError, match="shares of height and width"):
        affinity_picture(net, clip, [(1.0, 0.1)], protocol)


def test_masks_of_other_videos_are_told(clip):
    with pytest.raises(ValueError, match=r"masks \(3, 31, 47\) for 5 frames"):
        next(film(clip, ids(clip)[:3]))
