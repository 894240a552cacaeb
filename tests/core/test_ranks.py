"""One process equals two, three and four, whatever lies on each; and a rank that fails fails them all."""

import pytest
import torch
from zoo import GENERIC

OTHERS = ("acd", "hubert", "wav2vec2", "walk", "dpc", "memdpc", "l3", "avts", "av-contrast")
METHODS = (*GENERIC, "moco-batch", "byol-batchnorm", "ibot-batchnorm", *OTHERS, "groups", "joint")
SGD = {"steps": 3, "optimizer": "sgd", "lr": 0.1, "log_every": 1}


def distance(a, b):
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


@pytest.mark.parametrize("name", METHODS)
def test_one_process_equals_two_three_and_four(ranks, cases, name):
    one = cases.train(name, SGD)
    start = cases.train(name, {**SGD, "steps": 1, "lr": 1e-30})
    assert distance(one, start) > 1e-4  # it moved
    for world in (2, 3, 4):
        states = ranks(world, "train", name, SGD)
        for state in states:
            assert distance(one, state) < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_P1_mean_of_gradients_is_the_gradient_of_the_whole_batch(ranks, cases, name):
    one = cases.gradients(name)
    assert any(g.abs().max() > 1e-3 for g in one.values())
    for world in (2, 3, 4):
        for got in ranks(world, "gradients", name):
            assert distance(one, got) < 1e-13


@pytest.mark.parametrize("name", ["joint", "dino"])
def test_one_process_equals_four_with_accumulation_clipping_and_adamw(ranks, cases, name):
    options = {"steps": 3, "accumulate": 2, "clip": 0.5, "lr": 1e-2, "log_every": 1}
    one = cases.train(name, options)
    assert distance(one, ranks(4, "train", name, options)[1]) < 1e-9  # adamw divides by small numbers


def test_gather_start_mean_share_and_total_with_uneven_rows(ranks):
    rows = torch.cat([torch.arange((r + 1) * 2.0).view(r + 1, 2) + 10 * r for r in range(3)])
    for r, got in enumerate(ranks(3, "collectives")):
        assert torch.equal(got["rows"], rows)
        assert torch.equal(got["grad"], torch.full((r + 1, 2), 6.0))  # every rank's gradient reaches the owner
        assert got["start"] == [0, 1, 3][r]
        assert got["share"].item() == pytest.approx((r + 1) / 2, abs=1e-15)
        assert got["share_of_none"] == 1
        assert got["mean"] == 1
        assert torch.equal(got["total"], torch.full((2,), 6.0))
        assert torch.equal(got["total_grad"], torch.full((2,), 6.0))
        assert got["any"] == [True, False]
        assert got["dtypes"] == [torch.bool, torch.bfloat16, torch.float16, torch.int64]


def test_buffers_begin_as_those_of_rank_0_and_are_not_sent_again(ranks):
    """They may be as large as a queue or a memory; that they stay alike is up to methods, and tested of all above."""
    (first, same), (begun, own) = ranks(2, "buffers")
    assert torch.equal(first, begun)
    assert torch.equal(first, same)
    assert torch.equal(own, 2 * first)


def test_everything_is_an_identity_in_one_process():
    from partwhole.core import distributed as d

    x = torch.randn(3, 2, requires_grad=True)
    assert d.gather(x) is x
    assert d.total(x) is x
    assert torch.equal(d.mean(x), x)
    assert not d.mean(x).requires_grad
    assert d.share(torch.tensor(5)) == 1
    assert (d.rank(), d.world(), d.start(7), d.any_rank(True), d.any_rank(False)) == (0, 1, 0, True, False)
    module = torch.nn.Linear(2, 2)
    assert d.wrap(module) is module
    assert d.shard(module) is module
    assert d.first(lambda: 3) == d.attempt(lambda: 3, "x") == 3


def test_P3_gathered_rows_and_the_loss_follow_other_ranks_data(ranks):
    (losses, rows), *_ = ranks(3, "changes_with_others")
    assert rows == [6, 6]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_P4_it_does_not_matter_which_rank_holds_which_slice(ranks, cases):
    value, grads = cases.permuted([0, 1, 2, 3, 4, 5])
    for world, order in ((3, [0, 1, 2, 3, 4, 5]), (3, [4, 5, 0, 1, 2, 3]), (2, [5, 2, 0, 4, 1, 3])):
        for got, got_grads in ranks(world, "permuted", order):
            assert got == pytest.approx(value, abs=1e-13)
            assert (got_grads - grads).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("kind", "cause", "everywhere"),
    [
        ("shapes", "ValueError: gather needs rows of one shape", "rank 1: (2, 3)"),
        ("small", "ValueError: a batch of 2 cannot be split over 3", "Raise the batch to 3"),
        ("data", "BadSample: sample", "KeyError: 'label'"),
        ("nan", "NonFinite: step 0", "Batch: "),
        ("unused", "RuntimeError: 1 trainable parameters take no part in the loss, such as idle", "requires_grad_"),
        ("disk", "NotSaved: cannot write", "/dev/null/run"),
        ("first", "ValueError: no such folder", ""),
    ],
)
def test_P15_a_failing_or_uneven_rank_gives_an_error_on_every_rank_and_no_hang(ranks, kind, cause, everywhere):
    messages = ranks(3, "failure", kind, timeout=60)
    assert any(cause in m for m in messages), messages
    for message in messages:
        assert message != "nothing"
        assert everywhere in message


@pytest.mark.parametrize("nested", [False, True])
def test_first_runs_on_rank_0_and_the_others_find_its_result(ranks, tmp_path, nested):
    assert ranks(3, "once", str(tmp_path), nested, timeout=60) == ["made", "found", "found"]


@pytest.mark.parametrize("name", ["byol", "joint", "mae", "layers", "swav", "obow"])
def test_sharded_training_equals_one_process(ranks, cases, name):
    one = cases.train(name, SGD)
    for state in ranks(2, "train", name, {**SGD, "shard": True}):
        assert distance(one, state) < 1e-12


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_sharded_training_equals_one_process_with_each_fused_optimizer(ranks, cases, optimizer):
    options = {"steps": 3, "optimizer": optimizer, "lr": 1e-2, "log_every": 1}
    one = cases.train("mae", options)
    for state in ranks(2, "train", "mae", {**options, "shard": True}):
        assert distance(one, state) < 1e-9  # they divide by small numbers


def test_an_evaluation_may_call_the_encoder_of_a_sharded_method(ranks, cases):
    seen, state = cases.evaluated(False)
    assert seen[0::2] == seen[1::2]
    for got, got_state in ranks(2, "evaluated", True):
        assert got == pytest.approx(seen, abs=1e-12)
        assert distance(got_state, state) < 1e-12


def test_a_checkpoint_fits_any_number_of_processes_sharded_or_not(ranks, cases, tmp_path):
    options = {"steps": 6, "lr": 1e-2, "save_every": 2}
    whole = cases.train("dino", options)
    folder = str(tmp_path)

    def up_to(step, world, **more):
        """Go on from the folder's checkpoint, stopped after ``step`` steps."""
        return ranks(world, "train_until", "dino", {**options, **more}, folder, step)

    up_to(2, 2, shard=True)
    up_to(3, 3)
    up_to(4, 2, shard=True)
    states = up_to(6, 1)
    assert distance(whole, states[0]) < 1e-9
