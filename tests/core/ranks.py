"""What the processes of the tests over several ranks run, and the small server that runs it in them.

The processes are started once for the whole session and join a new group for every check.
"""

import copy
import importlib
import io
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Client
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from partwhole.core import checkpoint, distributed
from partwhole.core.data import Stream, hide, together
from partwhole.core.encoder import Encoder, Head, Mean, TransformerEncoder, Vectors
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.losses import group_info_nce
from partwhole.core.method import Joint, Method
from partwhole.core.norm import BatchNorm
from partwhole.core.signals import Interrupted
from partwhole.core.watch import Quiet

D, BATCH = 8, 8  # 8 over 3 ranks: slices of 2, 3 and 3


# ------------------------------------------------------------------ small methods and data


class Groups(Method):
    """Tokens of one group look alike."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = nn.Linear(encoder.dim, 4)

    def forward(self, batch):
        valid = batch.get("valid", torch.ones_like(batch["group"], dtype=torch.bool))
        feature = self.head(self.encoder(batch["x"], valid=valid))
        loss = group_info_nce(feature, batch["group"], valid=valid)
        return {"loss": loss * distributed.share(valid.sum())}


class Rows(Method):
    """A mean over all rows of a batch, however few a rank has; every row of ``y`` is predicted from its ``x``."""

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = Head(Mean(), nn.Linear(encoder.dim, 3))

    def forward(self, batch):
        error = (self.head(self.encoder(batch["x"]), None) - batch["y"]).square().sum(-1)
        return {"loss": error.mean() * distributed.share(len(error))}


class Counted(Groups):
    """The same; it says how many items its mean is over, so that micro-batches can be weighed."""

    def forward(self, batch):
        valid = batch.get("valid", torch.ones_like(batch["group"], dtype=torch.bool))
        return {**super().forward(batch), "items": valid.sum()}


def encoder():
    return TransformerEncoder(Vectors(3, D, length=6), dim=D, depth=1, heads=2)


class Layers(Encoder):
    """Single layers in lists, what they return changed in place."""

    def __init__(self):
        super().__init__()
        self.dim = D
        self.linears = nn.ModuleList([nn.Linear(3, D), nn.Linear(D, D)])
        self.norms = nn.ModuleList([BatchNorm(D), BatchNorm(D)])

    def forward(self, x, *, valid=None):
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(linear(x), valid).relu_()
        return x


def clouds(ragged):
    """24 clouds of 3 to 6 points (or 6), the first two coordinates of which say their group."""
    g = torch.Generator().manual_seed(1)
    out = []
    for i in range(24):
        x = torch.randn(3 + i % 4 if ragged else 6, 3, generator=g, dtype=torch.float64)
        out.append({"x": x, "group": (x[:, 0] > 0).long(), "y": x.mean(0)})
    return out


def two(sample):
    return {"views": [sample["x"] + 0.1 * torch.randn_like(sample["x"]) for _ in range(2)]}


def crops(sample):
    x = sample["x"]
    return {**two(sample), "crops": [x[:2], x[1:3]]}


def parts(sample):
    return {**two(sample), "component": [sample["group"], sample["group"]]}


def masked(sample):
    return {"x": sample["x"], "hidden": hide(len(sample["x"]), 0.6)}


def same(sample):
    return sample


def make(name):
    """(method, stream) of a small case, in float64."""
    from partwhole.core.methods.byol import BYOL
    from partwhole.core.methods.dino import DINO
    from partwhole.core.methods.mae import MAE
    from partwhole.core.methods.simclr import SimCLR
    from partwhole.shape3d.acd import ComponentContrast

    torch.manual_seed(0)
    e = encoder()
    method, view, ragged = {
        "simclr": lambda: (SimCLR(e, hidden=D, dim=4), two, True),
        "byol": lambda: (BYOL(e, hidden=D, dim=4, norm="layer"), two, True),
        "byol-batchnorm": lambda: (BYOL(e, hidden=D, dim=4, norm="batch"), two, True),
        "dino": lambda: (DINO(e, prototypes=16, hidden=D, bottleneck=4), crops, True),
        "mae": lambda: (MAE(e, dim=D, depth=1, heads=2), masked, False),
        "acd": lambda: (ComponentContrast(e, dim=8, clusters=3), parts, False),
        "groups": lambda: (Groups(e), same, True),
        "counted": lambda: (Counted(e), same, True),
        "rows": lambda: (Rows(e), same, False),
        "layers": lambda: (Rows(Layers()), same, False),
        "joint": lambda: (Joint({"a": Groups(e), "b": SimCLR(e, hidden=D, dim=4)}, {"a": 10.0, "b": 1.0}), None, True),
    }[name]()
    if view is None:
        stream = together(
            a=Stream(clouds(True), same, batch=BATCH, seed=1), b=Stream(clouds(True), two, batch=BATCH, seed=2)
        )
    else:
        stream = Stream(clouds(ragged), view, batch=BATCH, seed=1)
    return method.double(), stream


METHODS = ("simclr", "byol", "byol-batchnorm", "dino", "mae", "acd", "groups", "joint")


# ------------------------------------------------------------------ checks, run by every rank


def train(name, options, folder=None):
    """Weights after training; whole, whoever holds them."""
    method, stream = make(name)
    fit(Run(method=method, stream=stream), Fit(**options), Path(folder) if folder else None, watch=Quiet())
    return {k: distributed.full(v).detach().clone() for k, v in method.state_dict().items()}


def slow_train(folder, workers, pause):
    """40 steps, saved every 5, each batch of which takes ``pause`` seconds to make."""
    method, _ = make("dino")

    def view(sample):
        time.sleep(pause / BATCH)
        return crops(sample)

    stream = Stream(clouds(True), view, batch=BATCH, seed=1, workers=workers)
    options = Fit(steps=40, save_every=5, log_every=1, lr=1e-2)
    fit(Run(method=method, stream=stream), options, Path(folder), watch=Quiet())
    return method.state_dict()


def train_until(name, options, folder, step):
    """``train``, stopped by a signal to the last rank in step ``step``; the weights then."""
    method, stream = make(name)

    def watched(start=0):
        for tick, batch in enumerate(stream(start), start):
            if tick == step - 1 and distributed.rank() == distributed.world() - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    try:
        fit(Run(method=method, stream=watched), Fit(**options), Path(folder), watch=Quiet())
    except Interrupted:
        pass
    return {k: distributed.full(v).detach().clone() for k, v in method.state_dict().items()}


def gradients(name):
    """Averaged gradients of one batch."""
    method, stream = make(name)
    model = distributed.wrap(method)
    model(next(iter(stream(3))))["loss"].backward()
    return {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}


def collectives():
    """What each collective gives this rank."""
    r = distributed.rank()
    x = (torch.arange((r + 1) * 2.0).view(r + 1, 2) + 10 * r).requires_grad_()
    rows = distributed.gather(x)
    (rows * (r + 1)).sum().backward()
    total = distributed.total(y := torch.full((2,), r + 1.0, requires_grad=True))
    (total * (r + 1)).sum().backward()
    return {
        "rows": rows.detach(),
        "grad": x.grad,
        "start": distributed.start(r + 1),
        "share": distributed.share(r + 1),
        "share_of_none": distributed.share(0),
        "mean": distributed.mean(torch.tensor(r)),
        "total": total.detach(),
        "total_grad": y.grad,
        "any": distributed.any_of(r == 0, r < 0),
        "dtypes": [
            distributed.gather(torch.ones(r, 3).to(t)).dtype
            for t in (torch.bool, torch.bfloat16, torch.float16, torch.int64)
        ],
    }


def changes_with_others():
    """InfoNCE on rank 0 with and without another rank's data changed, and how many rows were gathered."""
    from partwhole.core.methods.simclr import SimCLR

    losses, rows = [], []
    for scale in (0.0, 1.0):
        torch.manual_seed(0)
        method = SimCLR(encoder(), hidden=D, dim=4)
        g = torch.Generator().manual_seed(3 + distributed.rank())
        views = [torch.randn(2, 6, 3, generator=g) for _ in range(2)]
        if distributed.rank():
            views[1] = views[1] + scale
        losses.append(method({"views": views})["loss"].item())
        rows.append(len(distributed.gather(views[0])))
    return losses, rows


def permuted(order):
    """Gradients of SimCLR when the slices of one batch lie on other ranks."""
    method, _ = make("simclr")
    g = torch.Generator().manual_seed(5)
    views = [torch.randn(6, 6, 3, generator=g, dtype=torch.float64) for _ in range(2)]
    count = 6 // distributed.world()
    rows = torch.tensor(order)[distributed.rank() * count : (distributed.rank() + 1) * count]
    model = distributed.wrap(method)  # kept: its hooks end with it
    out = model({"views": [v[rows] for v in views]})["loss"]
    out.backward()
    value = distributed.mean(out).item()
    return value, torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])


def failure(kind):
    """The message on this rank of a failure that only one rank or the world as such causes."""
    rank = distributed.rank()
    method, stream = make("rows")
    options = Fit(steps=3)
    if kind == "shapes":

        def work():
            distributed.gather(torch.ones(2, 2 + rank))
    elif kind == "small":

        def work():
            next(Stream(clouds(False), same, batch=distributed.world() - 1)(0))
    elif kind == "data":

        def broken(sample):
            if rank == 1:
                raise KeyError("label")
            return sample

        def work():
            fit(Run(method=method, stream=Stream(clouds(False), broken, batch=BATCH)), options, watch=Quiet())
    elif kind == "nan":

        def poisoned(sample):
            return {**sample, "y": sample["y"] * (torch.nan if rank == 1 else 1)}

        def work():
            fit(Run(method=method, stream=Stream(clouds(False), poisoned, batch=BATCH)), options, watch=Quiet())
    elif kind == "unused":
        method.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def work():
            fit(Run(method=method, stream=stream), options, watch=Quiet())
    elif kind == "disk":

        def work():
            fit(Run(method=method, stream=stream), options, Path("/dev/null/run"), watch=Quiet())
    elif kind == "first":

        def fails():
            raise ValueError("no such folder")

        def work():
            distributed.first(fails)

    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def once(folder, nested=False):
    """``first``: which ranks found the result of rank 0; ``nested``: of work that calls ``first`` itself."""
    path = Path(folder) / "made"

    def work():
        if path.exists():
            return "found"
        path.write_text("x")
        return "made"

    return distributed.first((lambda: distributed.first(work)) if nested else work)


def evaluated(shard):
    """An evaluation between steps calls the encoder by itself, and a copy; what it saw, and the weights after."""
    method, stream = make("simclr")
    seen = []

    def evaluate(m):
        x = torch.ones(2, 6, 3, dtype=torch.float64)
        seen.append(m.encoder(x).sum().item())
        seen.append(checkpoint.copied(m.encoder)(x).sum().item())
        return {"sum": seen[-1]}

    options = Fit(steps=4, evaluate_every=2, shard=shard, optimizer="sgd", lr=0.1)
    fit(Run(method=method, stream=stream, evaluate=evaluate), options, watch=Quiet())
    return seen, {k: distributed.full(v).detach().clone() for k, v in copy.copy(method.state_dict()).items()}


# ------------------------------------------------------------------ the server


def packed(answer):
    """An answer as bytes: a connection would send tensors through shared memory that both ends must keep."""
    file = io.BytesIO()
    torch.save(answer, file)
    return file.getvalue()


def serve(address, rank):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    with Client(address, authkey=b"ranks") as connection:
        connection.send(rank)
        while (request := connection.recv()) is not None:
            module, name, world, store, arguments = request
            try:
                if world > 1:
                    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
                answer = getattr(importlib.import_module(module), name)(*arguments)
                if world > 1:
                    distributed.barrier()
                connection.send_bytes(packed((True, answer)))
            except BaseException:
                connection.send_bytes(packed((False, traceback.format_exc())))
            if dist.is_initialized():
                dist.destroy_process_group()


class Ranks:
    """``ranks(world, function name, *arguments)`` -> what each rank returned."""

    def __init__(self, count):
        import subprocess
        from multiprocessing.connection import Listener

        self.listener = Listener(str(Path(tempfile.mkdtemp()) / "socket"), authkey=b"ranks")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        }
        self.processes = []
        for rank in range(count):
            command = [sys.executable, "-c", f"import ranks; ranks.serve({self.listener.address!r}, {rank})"]
            self.processes.append(subprocess.Popen(command, env=environment))
        arrived = {(connection := self.listener.accept()).recv(): connection for _ in range(count)}
        self.connections = [arrived[rank] for rank in range(count)]

    def __call__(self, world, name, *arguments, timeout=120):
        store = Path(tempfile.mkdtemp()) / "store"
        for connection in self.connections[:world]:
            connection.send(("ranks", name, world, str(store), arguments))
        answers = []
        for connection in self.connections[:world]:
            assert connection.poll(timeout), f"{name} hangs with {world} ranks"
            answers.append(torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False))
        for fine, answer in answers:
            assert fine, answer
        return [answer for _, answer in answers]

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
        for connection in self.connections:
            connection.close()
        self.listener.close()
