"""Where a recipe's shapes come from: paths, or the generator where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from partwhole.core import distributed
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared
from partwhole.shape3d.labelled import Labelled

LABELLED_SEED = 1_000  # generated labelled shapes are never among the generated unlabelled ones


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where shapes come from and how they are kept."""

    cache: Path = Path(".cache/partwhole")
    """Folder of decomposed shapes; any number of runs and processes may share it."""
    generate: int = 144
    """Unlabelled shapes to generate where no path is given."""
    generate_labelled: int = 20
    """Labelled shapes to generate per category where no path is given."""
    limit: int | None = None
    """Use only so many of the unlabelled shapes, chosen at random."""
    workers: int | None = None
    """Processes that decompose; all cores by default."""
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

    def unlabelled(self, paths: Sequence[Path], options: Decompose, watch: Any = None) -> Prepared:
        """The shapes below ``paths`` with their components; decomposed by the first process, read by the others."""
        from partwhole.shape3d.decompose.prepare import prepare

        def get() -> Prepared:
            return prepare(
                paths or [self._generated()], self.cache, options, workers=self.workers, backend=self.backend,
                address=self.address, retry_failed=self.retry_failed, watch=watch,
            )  # fmt: skip

        prepared = distributed.first(get)
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
        return generated(self.generate_labelled * len(CATEGORIES), seed=self.seed + LABELLED_SEED)

    def _generated(self) -> Path:
        """A folder of generated meshes, so that they go the way that all meshes go."""
        from partwhole.shape3d.generator import write

        folder = self.cache / f"generated-{self.seed}-{self.generate}"
        if not (folder / "complete").exists():
            write(folder, self.generate, seed=self.seed)
            (folder / "complete").touch()
        return folder
