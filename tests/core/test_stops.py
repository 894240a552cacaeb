"""How the loop stops: a loss that is not finite, signals, errors; nothing that was computed is lost."""

import os
import signal

import pytest
import torch

from partwhole.core.data import Stream, collate
from partwhole.core.fit import Fit, NonFinite, Run, fit
from partwhole.core.signals import Interrupted
from partwhole.core.watch import Quiet


def distance(a, b):
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


class Poisoned(list):
    names = tuple(f"cloud{i}.off" for i in range(24))


def poisoned(cases, bad_tick):
    """A stream that is sound but for batch ``bad_tick``."""
    samples = Poisoned(cases.clouds(False))
    stream = Stream(samples, cases.same, batch=4)

    class Bad:
        describe = staticmethod(stream.describe)

        def __call__(self, start=0):
            for tick, batch in enumerate(stream(start), start):
                yield {**batch, "x": batch["x"] * torch.nan} if tick == bad_tick else batch

    return Bad(), stream


def test_a_non_finite_loss_stops_before_it_and_names_the_batch(cases, tmp_path):
    before = trained_on(cases, poisoned(cases, 99)[0], 5)
    method, _ = cases.make("rows")
    bad, sound = poisoned(cases, 5)
    with pytest.raises(NonFinite) as caught:
        fit(Run(method=method, stream=bad), Fit(steps=9, schedule="constant"), tmp_path, watch=Quiet())
    text = str(caught.value)
    assert "step 5: the loss is nan" in text
    assert sound.describe(5) in text
    assert "cloud" in text
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["step"] == 5
    assert distance(saved["method"], before) == 0
    kept = torch.load(tmp_path / "nonfinite.pt", weights_only=True)
    assert kept["names"] == sound.describe(5)
    assert torch.isnan(kept["batches"][0]["x"]).all()


def trained_on(cases, stream, steps):
    method, _ = cases.make("rows")
    with pytest.raises(RuntimeError, match="the stream ended"):
        fit(Run(method=method, stream=cut(stream, steps)), Fit(steps=9, schedule="constant"), watch=Quiet())
    return method.state_dict()


def cut(stream, steps):
    def ended(start=0):
        for tick, batch in enumerate(stream(start), start):
            if tick == steps:
                return
            yield batch

    return ended


def test_a_non_finite_loss_leaves_running_statistics_as_before_it(cases, tmp_path):
    method, stream = cases.make("byol-batchnorm")

    def bad(start=0):
        for tick, batch in enumerate(stream(start), start):
            yield {**batch, "views": [v * torch.inf for v in batch["views"]]} if tick == 2 else batch

    with pytest.raises(NonFinite):
        fit(Run(method=method, stream=bad), Fit(steps=5), tmp_path, watch=Quiet())
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["method"]
    assert all(v.isfinite().all() for v in saved.values())


def test_an_infinite_gradient_of_a_finite_loss_stops_too(cases):
    method, stream = cases.make("rows")
    method.head.net.weight.register_hook(lambda g: g * torch.inf)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    with pytest.raises(NonFinite, match="gradient's norm"):
        fit(Run(method=method, stream=stream), Fit(steps=5), watch=Quiet())
    assert distance(before, method.state_dict()) == 0


def signalled(stream, tick, number):
    def stopping(start=0):
        for t, batch in enumerate(stream(start), start):
            if t == tick:
                os.kill(os.getpid(), number)
            yield batch

    return stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_restores_the_handlers(cases, tmp_path, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = Fit(steps=6, lr=1e-2)
    whole, stream = cases.make("dino")
    fit(Run(method=whole, stream=stream), options, watch=Quiet())

    method, stream = cases.make("dino")
    with pytest.raises(Interrupted, match=r"stopped and saved after step 3 .* run it again to go on") as caught:
        fit(Run(method=method, stream=signalled(stream, 2, number)), options, tmp_path, watch=Quiet())
    assert caught.value.signal == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3

    method, stream = cases.make("dino")
    fit(Run(method=method, stream=stream), options, tmp_path, watch=Quiet())
    assert distance(whole.state_dict(), method.state_dict()) == 0


def test_a_signal_in_the_last_step_stops_what_comes_after_the_training(cases, tmp_path):
    method, stream = cases.make("rows")
    with pytest.raises(Interrupted, match="saved after step 4"):
        fit(Run(method=method, stream=signalled(stream, 3, signal.SIGINT)), Fit(steps=4), tmp_path, watch=Quiet())
    method, stream = cases.make("rows")
    fit(Run(method=method, stream=stream), Fit(steps=4), tmp_path, watch=Quiet())  # whole: nothing to train


def test_a_second_ctrl_c_stops_at_once(cases):
    method, stream = cases.make("rows")

    def twice(start=0):
        for t, batch in enumerate(stream(start), start):
            if t == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(Run(method=method, stream=twice), Fit(steps=4), watch=Quiet())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_a_training_inside_an_evaluation_saves_the_outer_one(cases, tmp_path):
    method, stream = cases.make("rows")

    def evaluate(_):
        inner, inner_stream = cases.make("rows")
        fit(Run(method=inner, stream=signalled(inner_stream, 1, signal.SIGTERM)), Fit(steps=9), watch=Quiet())

    with pytest.raises(Interrupted, match="saved after step 2"):
        fit(
            Run(method=method, stream=stream, evaluate=evaluate),
            Fit(steps=6, evaluate_every=2),
            tmp_path,
            watch=Quiet(),
        )


def test_an_evaluation_that_fails_costs_no_training(cases, tmp_path):
    method, stream = cases.make("rows")

    def evaluate(_):
        raise KeyError("label")

    with pytest.raises(KeyError):
        fit(
            Run(method=method, stream=stream, evaluate=evaluate),
            Fit(steps=6, evaluate_every=4),
            tmp_path,
            watch=Quiet(),
        )
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4


def test_a_stream_that_ends_is_named(cases):
    method, stream = cases.make("rows")
    with pytest.raises(RuntimeError, match="the stream ended in step 2 of 5"):
        fit(Run(method=method, stream=cut(stream, 2)), Fit(steps=5), watch=Quiet())


def test_an_error_in_a_method_names_the_batch(cases):
    method, stream = cases.make("rows")
    stream.samples = Poisoned(stream.samples)
    stream.view = lambda sample: {**sample, "x": sample["x"][:, :2]}
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever the encoder raises
        fit(Run(method=method, stream=stream), Fit(steps=5), watch=Quiet())
    assert stream.describe(0) in "".join(caught.value.__notes__)


def test_collated_batches_keep_to_their_device(cases):
    from partwhole.core.fit import move

    batch = {"a": [torch.ones(1), ("x", torch.ones(1))], "b": {"c": collate([torch.ones(2)] * 2)}}
    assert move(batch, torch.device("meta"))["b"]["c"].device.type == "meta"
    assert move(batch, torch.device("meta"))["a"][1][0] == "x"
