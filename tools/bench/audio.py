"""Sounds on one core: spectrograms and views per second, of sounds of one second at 16 kHz.

    python tools/bench/audio.py [--quick] [--seconds 1.0] [--rate 16000]

"log-mel" is one spectrogram at a time, as a data worker makes it, beside torchaudio's transform and a logarithm;
"batch" are 64 at once. A view begins with the waveform, so that its spectrogram is in it. MFCCs are what HuBERT's first
units are found of. Medians of runs in turn, CPU seconds of the process on one thread: measure.py.
"""

import argparse

import measure
import torch

from partwhole.audio import policies
from partwhole.audio.mel import Mel
from partwhole.audio.units import MFCC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a sound")
    parser.add_argument("--rate", type=int, default=16_000, help="samples a second")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    from torchaudio.transforms import MelSpectrogram

    mel, many, runs = Mel(rate=options.rate), 64, 3 if options.quick else 9
    sounds = 0.1 * torch.randn(many, round(options.seconds * options.rate))
    samples = [
        {"sound": x, "rate": options.rate, "others": [{"sound": y, "rate": options.rate} for y in sounds[:4]]}
        for x in sounds
    ]
    theirs = MelSpectrogram(
        options.rate,
        n_fft=mel.size,
        win_length=mel.width,
        hop_length=mel.step,
        f_min=mel.low,
        f_max=mel.top,
        n_mels=mel.bands,
    )
    mfcc = MFCC(options.rate, hop=mel.step, window=mel.width)
    frames = mel.frames(options.seconds)
    views = {name: policies.policy(name, mel, frames) for name in policies.POLICIES}
    sides = {
        "log-mel": lambda: [mel(x) for x in sounds],
        "log-mel, torchaudio": lambda: [(theirs(x) + 1e-4).log() for x in sounds],
        "log-mel, batch": lambda: mel(sounds),
        "MFCC": lambda: [mfcc(x) for x in sounds],
        **{f"view {name}": lambda view=view: [view(sample) for sample in samples] for name, view in views.items()},
    }
    took = measure.medians(sides, "cpu", repeats=runs)
    print(f"{options.seconds:g} s at {options.rate} Hz, {mel.bands} bands, {frames} frames; per second of one core:")
    for name, seconds in took.items():
        print(f"  {name:24s}{many / seconds:10,.0f}   {1e3 * seconds / many:8.3f} ms")


if __name__ == "__main__":
    main()
