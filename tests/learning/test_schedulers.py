"""Oracles: rates computed by hand, and torch's CosineAnnealingWarmRestarts."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from fer_lab.learning.schedulers import cosine, onecycle, plateau, sgdr

STEPS = 5  # an epoch


def sgd(lr=0.1, **settings):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9, **settings)


def rates(make, epochs, scores=None, **settings):
    """The rate at every step of a training run that uses the schedule as Lightning would."""
    optimizer = sgd()
    config = make(optimizer, epochs=epochs, steps_per_epoch=STEPS, **settings)
    found = []
    for epoch in range(epochs):
        for _ in range(STEPS):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if config["interval"] == "step":
                config["scheduler"].step()
        if config["interval"] == "epoch":
            config["scheduler"].step(scores[epoch])
    return found


def test_plateau_waits_its_patience_then_multiplies():
    scores = [0.1, 0.3, 0.3, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    found = rates(plateau, 12, scores, patience=2, factor=0.5)[::STEPS]
    # epochs 2 3 4 bring nothing, so 5 is halved; 5 improves; 6 7 8 bring nothing, so 9 is halved
    assert found == pytest.approx([0.1] * 5 + [0.05] * 4 + [0.025] * 3)


def test_plateaus_threshold_is_absolute():
    scores = [0.10, 0.14, 0.18, 0.22]  # + 0.04 is not enough, + 0.08 is
    found = rates(plateau, 4, scores, patience=0, factor=0.5, threshold=0.05)[::STEPS]
    assert found == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_plateau_can_watch_a_loss_and_has_a_floor():
    config = plateau(sgd(), epochs=9, steps_per_epoch=STEPS, monitor="val/loss", mode="min")
    assert (config["monitor"], config["interval"]) == ("val/loss", "epoch")
    found = rates(plateau, 9, [1.0] * 9, mode="min", patience=0, factor=0.1, floor=0.002)[::STEPS]
    assert found == pytest.approx([0.1, 0.1, 0.01] + [0.002] * 6)


@pytest.mark.parametrize("floor", [0.0, 0.01])
@pytest.mark.parametrize("warmup", [0, 1, 1.4, 2])
def test_cosine_rises_in_a_line_and_falls_as_a_cosine(warmup, floor):
    rise, total = round(warmup * STEPS), 6 * STEPS
    expected = [0.1 * (1 / rise + (1 - 1 / rise) * step / rise) for step in range(rise)]
    expected += [
        floor + (0.1 - floor) * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
        for step in range(rise, total)
    ]
    assert rates(cosine, 6, warmup=warmup, floor=floor) == pytest.approx(expected)


def test_cosine_refuses_a_warmup_that_is_all_of_training():
    with pytest.raises(ValueError, match=r"warmup=6 epochs leaves nothing of the 6 epochs"):
        cosine(sgd(), epochs=6, steps_per_epoch=STEPS, warmup=6)


@pytest.mark.parametrize(("cycles", "first", "growth"), [([3], 3, 1), ([2, 4, 8], 2, 2), ([1, 1, 1], 1, 1)])
def test_sgdr_without_decay_is_torchs_warm_restarts(cycles, first, growth):
    optimizer = sgd()
    theirs = CosineAnnealingWarmRestarts(optimizer, first * STEPS, growth, eta_min=0.01)
    expected = []
    for _ in range(12 * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(sgdr, 12, cycles=cycles, floor=0.1) == pytest.approx(expected)


def test_sgdr_restarts_lower_each_time_as_in_r4():
    found = rates(sgdr, 12, cycles=[3], decay=0.7)
    assert found[:: 3 * STEPS] == pytest.approx([0.1, 0.07, 0.049, 0.0343])
    middle = 0.07 * (1 + math.cos(math.pi * 7 / 15)) / 2
    assert found[3 * STEPS + 7] == pytest.approx(middle)


@pytest.mark.parametrize("cycles", [[], [3, 0]])
def test_sgdr_refuses_empty_cycles(cycles):
    with pytest.raises(ValueError, match=r"lengths above 0"):
        sgdr(sgd(), epochs=6, steps_per_epoch=STEPS, cycles=cycles)


def test_onecycle_peaks_at_the_optimizers_rate_and_leaves_its_momentum():
    optimizer = sgd()
    config = onecycle(optimizer, epochs=10, steps_per_epoch=STEPS, warmup=0.3)
    assert optimizer.param_groups[0]["momentum"] == 0.9 and config["interval"] == "step"
    found = rates(onecycle, 10, warmup=0.3)
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == found[14] == pytest.approx(0.1)  # 0.3 * 50 steps, counted from 0
    assert found[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert found[7] == pytest.approx(0.004 + 0.096 * (1 - math.cos(math.pi * 7 / 14)) / 2)


def test_onecycle_can_run_the_momentum_the_other_way():
    optimizer = sgd()
    scheduler = onecycle(optimizer, epochs=10, steps_per_epoch=STEPS, momentum=(0.85, 0.95))["scheduler"]
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)
    for _ in range(14):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("make", "settings"), [(cosine, {"warmup": 1}), (sgdr, {"cycles": [1, 2], "decay": 0.7}), (onecycle, {})]
)
@pytest.mark.parametrize("stop", [3, 5, 17])
def test_a_schedule_goes_on_where_its_checkpoint_stopped(make, settings, stop):
    expected = rates(make, 6, **settings)
    first = sgd()
    scheduler = make(first, epochs=6, steps_per_epoch=STEPS, **settings)["scheduler"]
    for _ in range(stop):
        first.step()
        scheduler.step()
    second = sgd()
    resumed = make(second, epochs=6, steps_per_epoch=STEPS, **settings)["scheduler"]
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    found = []
    for _ in range(stop, 6 * STEPS):
        found.append(second.param_groups[0]["lr"])
        second.step()
        resumed.step()
    assert found == pytest.approx(expected[stop:])


@pytest.mark.parametrize("make", [plateau, cosine, sgdr, onecycle])
def test_every_group_keeps_its_own_rate(make):
    optimizer = torch.optim.SGD(
        [
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.01},
            {"params": [torch.nn.Parameter(torch.zeros(1))]},
        ],
        lr=0.1,
    )
    make(optimizer, epochs=2, steps_per_epoch=STEPS)
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert second == pytest.approx(10 * first)


def test_r4s_four_cycles_of_twelve_epochs():
    """lr .025, 48 epochs, worked out by hand: cos(45°) = .7071068, cos(90°) = 0, cos(165°) = -.9659258."""
    by_hand = {
        0: 0.025, 3: 0.0213388, 6: 0.0125, 9: 0.0036612,
        12: 0.0175, 15: 0.0149372, 18: 0.00875, 24: 0.01225, 30: 0.006125,
        36: 0.008575, 42: 0.0042875, 47: 0.0001461,
    }  # fmt: skip
    found = rates(sgdr, 48, cycles=[12], decay=0.7)[::STEPS]
    ours = {epoch: found[epoch] * 0.25 for epoch in by_hand}  # rates() begins at .1
    assert ours == pytest.approx(by_hand, abs=5e-8)
    # "70% smaller", as its text says, is decay=0.3: .025, .0075, .00225, .000675
    starts = rates(sgdr, 48, cycles=[12], decay=0.3)[:: 12 * STEPS]
    assert [0.25 * start for start in starts] == pytest.approx([0.025, 0.0075, 0.00225, 0.000675])
