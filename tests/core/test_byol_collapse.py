"""With what BYOL collapses and with what it does not, as examples/byol_collapse.py shows it."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "byol_collapse.py"


@pytest.mark.slow
def test_E3_byol_needs_batch_norm_and_predictor_here_and_its_loss_does_not_say_so():
    train = runpy.run_path(str(EXAMPLE))["train"]
    out = {
        (norm, predictor, ema): train(norm=norm, predictor=predictor, ema=ema, seed=1)
        for norm in ("batch", None)
        for predictor in (True, False)
        for ema in (True, False)
    }
    start = train(norm="batch", predictor=True, ema=True, steps=0, seed=1)
    whole, simsiam = out["batch", True, True], out["batch", True, False]
    for held in (whole, simsiam):
        assert held["std"] > 0.85 > start["std"]
        assert held["knn"] > start["knn"] + 0.1
        assert held["rank"] > 8
    half = out["batch", False, True]
    assert 0.2 < half["std"] < 0.6
    assert half["knn"] > start["knn"] + 0.1, "what is left of the spread is still worth something"
    for variant in (("batch", False, False), *(v for v in out if v[0] is None)):
        collapsed = out[variant]
        assert collapsed["std"] < 0.1
        assert collapsed["rank"] < 5
        assert collapsed["knn"] < whole["knn"] - 0.1
        assert collapsed["loss"] < min(whole["loss"], simsiam["loss"]), "the loss of a collapse is lower"
