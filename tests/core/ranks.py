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
from miniatures import BATCH, D, clouds, encoder, same
from torch import nn
from zoo import crops, make

from partwhole.core import checkpoint, distributed
from partwhole.core.data import Stream
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.signals import Interrupted
from partwhole.core.watch import Quiet

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


def buffers():
    """A buffer that each rank makes its own: after wrapping, and after a pass with it changed on the last rank."""
    method, stream = make("obow")
    torch.manual_seed(distributed.rank())
    method.words.rows.normal_()
    model, rows = distributed.wrap(method).eval(), []
    rows.append(method.words.rows.clone())
    if distributed.rank() == distributed.world() - 1:
        method.words.rows.mul_(2)
    model(next(iter(stream(0))))
    return [*rows, method.words.rows]


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


def monitored(name):
    """What the monitor tells of one batch."""
    from partwhole.core.monitor import Monitor

    method, stream = make(name)
    batch = next(iter(stream(0)))
    monitor = Monitor(method)
    with monitor.watching(batch):
        method(batch)
    return monitor.values()


def collapse(folder):
    """What ends this rank of a training whose encoder is dead."""
    import toys

    from partwhole.core.doctor import Collapsed

    make, view, *_ = toys.COLLAPSED["simclr, dead"]
    try:
        fit(*toys.train(make, view, steps=45, doctor="stop"), Path(folder), watch=Quiet())
    except Collapsed as error:
        return f"Collapsed: {error}"
    return "nothing"


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
