"""Views of images made on one core: ours against torchvision's, solo-learn's and lightly's transforms by one policy.

    python tools/bench/vision.py                        # some minutes
    python tools/bench/vision.py --quick --only simclr
    python tools/bench/vision.py --device cuda          # batches on the device; the others where they run, on one core

"ours" makes a view of one image at a time, as a data worker does; "ours, batch" draws for each, and makes the views of
all at once on the device. "torchvision" is its transforms v2 on uint8 tensors, "torchvision, PIL" the same on images as
PIL decodes them; solo-learn and lightly take those too, and are measured where they are installed. Figures are medians
of runs in turn: milliseconds for a view, and for a JPEG decoded (by PIL, on every side) and then a view; both as
multiples of ours. On a CPU it is the process's own time, on one thread: measure.py.
"""

import argparse
import importlib
import io
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from measure import Work
from PIL import Image
from step_peers import without_bolts
from torch import Tensor
from torchvision.transforms import v2

from partwhole.vision import policies
from partwhole.vision.resample import kernel
from partwhole.vision.views import Augment

CASES = {  # policy, side of a view, height and width of the images
    "simclr, 32": (policies.simclr(32), (32, 32)),
    "simclr, 64": (policies.simclr(64), (64, 64)),
    "byol first, 96": (policies.byol(96)[0], (96, 96)),
    "simclr, 224": (policies.simclr(224), (375, 500)),
    "byol first, 224": (policies.byol(224)[0], (375, 500)),
    "mae, 64": (policies.mae(64), (64, 64)),
    "mae, 224": (policies.mae(224), (375, 500)),
}
View = Callable[[Any], Any]


def jpeg(height: int, width: int, seed: int) -> bytes:
    """Something as smooth as a photograph, with some noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    x = (smooth + 0.03 * torch.randn(3, height, width, generator=g)).clamp(0, 1).mul(255).byte()
    file = io.BytesIO()
    Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=90)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def torchvision(a: Augment, *, pil: bool) -> View:
    assert a.scale is not None
    jitter = v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)
    steps = [
        v2.RandomResizedCrop(a.size, a.scale, a.ratio, antialias=True),
        v2.RandomHorizontalFlip(a.flip),
        *([v2.RandomApply([jitter], a.jitter)] if a.jitter else []),
        *([v2.RandomGrayscale(a.grey)] if a.grey else []),
        *([v2.RandomApply([v2.GaussianBlur(kernel(a.size), a.sigma)], a.blur)] if a.blur else []),
        *([v2.RandomSolarize(128, a.solarize)] if a.solarize else []),
        *([v2.PILToTensor()] if pil else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(a.mean, a.std),
    ]
    return v2.Compose(steps)


def solo(a: Augment) -> View:
    options = {
        "color_jitter_prob": a.jitter, "gray_scale_prob": a.grey, "horizontal_flip_prob": a.flip,
        "gaussian_prob": a.blur, "solarization_prob": a.solarize, "crop_size": a.size,
    }  # fmt: skip
    without_bolts()
    transform = importlib.import_module("solo.utils.pretrain_dataloader").CustomTransform
    low, high = a.scale or (1.0, 1.0)
    return transform(a.brightness, a.contrast, a.saturation, a.hue, min_scale=low, max_scale=high, **options).transform


def lightly(a: Augment) -> View:
    transform = importlib.import_module("lightly.transforms.byol_transform").BYOLView1Transform
    low, _ = a.scale or (1.0, 1.0)
    names = {"cj_bright": a.brightness, "cj_contrast": a.contrast, "cj_sat": a.saturation, "cj_hue": a.hue}
    return transform(
        input_size=a.size, cj_prob=a.jitter, **names, min_scale=low, random_gray_scale=a.grey, gaussian_blur=a.blur,
        solarization_prob=a.solarize, sigmas=a.sigma, hf_prob=a.flip,
    )  # fmt: skip


def many(a: Augment, images: list[Tensor], device: str) -> Tensor:
    drawn = [a.draw(*image.shape[1:]) for image in images]
    numbers = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    return a.apply(torch.stack(images).to(device, non_blocking=True), numbers)


def sides(a: Augment, files: list[bytes], device: str, decode: bool) -> dict[str, Work]:
    """What each side does with all of the files, or with them decoded before."""
    pictures = [decoded(file) for file in files]
    tensors = [tensor(picture) for picture in pictures]

    def each(view: View, pil: bool) -> Work:
        def work() -> None:
            for i, file in enumerate(files):
                if decode:
                    view(decoded(file) if pil else tensor(decoded(file)))
                else:
                    view(pictures[i] if pil else tensors[i])

        return work

    found = {
        "torchvision": each(torchvision(a, pil=False), False),
        "torchvision, PIL": each(torchvision(a, pil=True), True),
    }
    for name, peer in {"solo-learn": solo, "lightly": lightly}.items():
        try:
            found[name] = each(peer(a), True)
        except ImportError:
            continue
    found["ours"] = each(lambda image: a({"image": image}), False)
    found["ours, batch"] = lambda: many(a, [tensor(decoded(f)) for f in files] if decode else tensors, device)
    return found


def compare(name: str, device: str, count: int, repeats: int) -> None:
    augment, (height, width) = CASES[name]
    files = [jpeg(height, width, seed) for seed in range(count)]
    torch.manual_seed(0)
    for _ in range(8):  # what is kept of crops of each size is there after the first hundreds
        for file in files:
            augment({"image": tensor(decoded(file))})
    views = measure.medians(sides(augment, files, device, False), device, repeats=repeats)
    whole = measure.medians(sides(augment, files, device, True), device, repeats=repeats)
    for side in views:
        row = [f"{name if side == next(iter(views)) else '':16} {side:18}"]
        row += [f"{took[side] / count * 1e3:>9.3f} {took[side] / took['ours']:>7.2f}x" for took in (views, whole)]
        print(*row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 images and 3 repeats")
    parser.add_argument("--images", type=int, default=64, help="views in a run, and in a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", default="", help=f"those whose name begins so: {'; '.join(CASES)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count, repeats = (16, 3) if args.quick else (args.images, args.repeats)
    print(measure.machine(args.device, 1))
    print(f"{'':16} {'':18} {'view, ms':>9} {'':>8} {'+ decode':>9}")
    for name in CASES:
        if name.startswith(args.only):
            compare(name, args.device, count, repeats)


if __name__ == "__main__":
    main()
