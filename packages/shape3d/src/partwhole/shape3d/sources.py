"""Where a recipe's shapes come from: paths, or the generator where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from partwhole.core import distributed
from partwhole.shape3d.decompose.cache import Cache
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.labelled import Labelled

LABELLED_SEED = 1_000  # generated labelled shapes are never among the generated unlabelled ones


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where shapes come from and how they are kept."""

    cache: Path = Path(".cache/partwhole")
    """Folder of decomposed shapes; any number of runs and processes may share it."""
    generate: int = 96
    """Unlabelled shapes to generate where no path is given."""
    generate_labelled: int = 20
    """Labelled shapes to generate per category where no path is given."""
    retain_labelled: bool = False
    """Also pre-train on the shapes of the labelled set, without their labels, where they are among the data."""
    limit: int | None = None
    """Use only so many of the unlabelled shapes, chosen at random."""
    workers: int | None = None
    """Processes that decompose, and that train few-shot networks side by side (1 GB each); all cores by default."""
    backend: Literal["local", "dask", "ray"] = "local"
    """Where to decompose: here, or on a cluster through joblib."""
    address: str | None = None
    """Address of the cluster's scheduler."""
    retry_failed: bool = False
    """Decompose again what failed before."""
    loaders: int = 0
    """Processes that make views while training; 0: the training process itself."""
    seed: int = 0
    """Of generated shapes and of the choice of ``limit`` shapes."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"cache", "workers", "backend", "address", "retry_failed", "loaders", "generate_labelled"}
    )  # they do not change what is trained

    def unlabelled(
        self, paths: Sequence[Path], options: Decompose, *, labelled: Path | None = None, watch: Any = None
    ) -> Prepared:
        """The shapes below ``paths`` with their components; decomposed by the first process, read by the others.

        Those that belong to the set ``labelled`` are left out, unless ``retain_labelled``, copies under other names and
        in other formats too.
        """
        from partwhole.shape3d.decompose.prepare import prepare
        from partwhole.shape3d.twins import twins

        def get() -> Prepared:
            return prepare(
                paths or [self._generated()], self.cache, options, workers=self.workers, backend=self.backend,
                address=self.address, retry_failed=self.retry_failed, watch=watch,
            )  # fmt: skip

        known: list[str] = []
        if labelled is not None and paths and not self.retain_labelled:  # first: what is wrong with it costs no hours
            known = [path for path in self.labelled(labelled).paths if path]
        prepared = distributed.first(get)
        if known:
            files = [one["path"] for one in prepared.records]
            same = set(distributed.first(lambda: twins(files, known, self.cache)))
            mine = [i for i in range(len(prepared)) if i not in same]
            if len(mine) < len(prepared):
                if watch is not None:
                    out = len(prepared) - len(mine)
                    watch.say(f"{out} shapes of the labelled set are left out (--source.retain-labelled keeps them)")
                if not mine:
                    raise ValueError(
                        f"all {len(prepared)} unlabelled shapes are of the labelled set {labelled}: give other --data, "
                        "or --source.retain-labelled to pre-train on them without their labels"
                    )
                prepared = prepared.subset(mine)
        if self.limit is None or self.limit >= len(prepared):
            return prepared
        order = torch.randperm(len(prepared), generator=torch.Generator().manual_seed(self.seed))
        return prepared.subset(sorted(order[: self.limit].tolist()))

    def labelled(self, path: Path | None) -> Labelled:
        """The labelled shapes of ``path``, or generated ones."""
        from partwhole.shape3d.generator import CATEGORIES
        from partwhole.shape3d.labelled import generated, read_labelled

        if path is not None:
            return distributed.first(lambda: read_labelled(path, cache=self.cache))
        return generated(self.generate_labelled * len(CATEGORIES), points=1024, seed=self.seed + LABELLED_SEED)

    def _generated(self) -> Path:
        """A folder of generated meshes, so that they go the way that all meshes go."""
        from partwhole.shape3d.generator import VERSION, write

        folder = self.cache / f"generated-{VERSION}-{self.seed}-{self.generate}"
        with Cache(self.cache).errors():
            if not (folder / "complete").exists():
                write(folder, self.generate, seed=self.seed)
                (folder / "complete").touch()
        return folder
