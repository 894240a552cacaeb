"""Fixtures of the tests of vision."""

import pytest
import torch
from PIL import Image

CHANNELS = {"red": 0, "green": 1, "blue": 2}


@pytest.fixture(scope="session")
def coloured():
    """Write folders of noisy images, red, green or blue as their folder's name says."""

    def write(where, counts, size, noise=60, colour=150):
        """counts: images of each folder, such as {"train/red": 8}; size: (height, width), or a function of an image's
        number; values are drawn below ``noise``, and ``colour`` is added to those of one channel."""
        generator = torch.Generator().manual_seed(0)
        for name, count in counts.items():
            (where / name).mkdir(parents=True)
            for i in range(count):
                H, W = size(i) if callable(size) else size
                x = torch.randint(0, noise, (H, W, 3), generator=generator).byte()
                x[..., CHANNELS[(where / name).name]] += colour
                Image.fromarray(x.numpy()).save(where / name / f"{i}.png")
        return where

    return write
