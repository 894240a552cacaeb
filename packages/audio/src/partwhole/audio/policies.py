"""Views as papers have them, for spectrograms of so many frames. ``dataclasses.replace`` makes variants."""

from collections.abc import Callable
from dataclasses import replace

from partwhole.audio.mel import Mel
from partwhole.audio.views import Augment, Looks


def byola(mel: Mel, frames: int) -> Augment:
    """Niizumi et al., 2021 and 2022 (BYOL-A): log-space mix-up, random resize crop, random linear fader.

    Apart from the papers the other sound of mix-up is drawn from the whole data set, where they keep a queue of the
    last 2,048; bands are resized to 0.6 to 1.5 of their width, where theirs end at 1.
    """
    return Augment(mel=mel, frames=frames, mixup=0.4, stretch=(0.67, 1.5), pitch=(0.6, 1.5), fader=1.0)


def simclr(mel: Mel, frames: int) -> Augment:
    """For contrast, in the manner of Fonseca et al., 2021, and of CLAR (Al-Tahan and Mohsenzadeh, 2021): crops, noise,
    time stretched and pitch shifted, loudness that fades, masks; no other sound is mixed in."""
    return Augment(
        mel=mel, frames=frames, crop=(0.8, 1.0), gain=6.0, noise=0.5, stretch=(0.8, 1.25), pitch=(0.75, 1.33),
        fader=0.5, masks=(1, 1),
    )  # fmt: skip


def specaugment(mel: Mel, frames: int) -> Augment:
    """Park et al., 2019: time a little stretched, two stretches of time and two of pitch hidden."""
    return Augment(mel=mel, frames=frames, crop=(0.8, 1.0), stretch=(0.9, 1.1), masks=(2, 2))


def plain(mel: Mel, frames: int) -> Augment:
    """A random piece, and nothing else: for what hides a part of it."""
    return Augment(mel=mel, frames=frames, crop=(1.0, 1.0))


def middle(mel: Mel, frames: int) -> Augment:
    """Nothing random: the middle, all that there is up to so many frames. What an evaluation sees."""
    return Augment(mel=mel, frames=frames, crop=None)


POLICIES: dict[str, Callable[[Mel, int], Augment]] = {
    "byola": byola, "simclr": simclr, "specaugment": specaugment, "plain": plain
}  # fmt: skip


def looks(name: str, mel: Mel, frames: int, crops: int = 0) -> Looks:
    """The two views of a policy, and so many of DINO's local crops: pieces of it, two fifths as long."""
    view = policy(name, mel, frames)
    if not crops:
        return Looks(view, view)
    short = replace(view, frames=max(1, round(frames * 0.4)), crop=(0.3, 0.6))
    return Looks(view, view, crops, short)


def policy(name: str, mel: Mel, frames: int) -> Augment:
    if name not in POLICIES:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name](mel, frames)
