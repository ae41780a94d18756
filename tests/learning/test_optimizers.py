"""Oracles: the update rules written out by hand."""

import numpy as np
import pytest
import torch

from fer_lab.learning.module import moving_average
from fer_lab.learning.optimizers import SGDW, Muon, parameter_groups
from fer_lab.models.small import Small
from fer_lab.models.weights import freeze

TARGET = torch.tensor([1.0, -2.0, 0.5])


def descend(optimizer, parameter, steps=6, rates=None):
    path = []
    for step in range(steps):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        ((parameter - TARGET) ** 2).sum().backward()
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return np.stack(path)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgdw_follows_the_papers_algorithm(nesterov):
    parameter = torch.nn.Parameter(torch.ones(3))
    rates = [0.1, 0.1, 0.05, 0.05, 0.2, 0.01]
    optimizer = SGDW([parameter], lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3)
    found = descend(optimizer, parameter, rates=rates)
    value, velocity, expected = np.ones(3), np.zeros(3), []
    for rate in rates:
        gradient = 2 * (value - TARGET.numpy())
        velocity = 0.9 * velocity + gradient
        step = gradient + 0.9 * velocity if nesterov else velocity
        value = value * (1 - rate * 0.3) - rate * step
        expected.append(value)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_decay_does_not_enter_the_momentum():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = SGDW([parameter], lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(4):
        parameter.grad = torch.zeros(3)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach(), np.full(3, 0.95**4), rtol=1e-6)
    assert not optimizer.state[parameter]["momentum_buffer"].any()


def test_sgdw_without_decay_is_sgd():
    ours, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    found = descend(SGDW([ours], **settings), ours)
    np.testing.assert_array_equal(found, descend(torch.optim.SGD([theirs], **settings), theirs))


def test_sgdw_takes_a_closure_and_leaves_parameters_without_gradient():
    used, idle = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = SGDW([used, idle], lr=0.1, weight_decay=0.5)

    def closure():
        optimizer.zero_grad()
        loss = ((used - TARGET) ** 2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(float(((1 - TARGET) ** 2).sum()))
    np.testing.assert_allclose(used.detach(), 0.95 - 0.1 * 2 * (1 - TARGET.numpy()), rtol=1e-6)
    assert torch.equal(idle, torch.ones(3))


def test_sgdw_resumes_where_it_was():
    whole, half = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    expected = descend(SGDW([whole], **settings), whole, steps=6)
    first = SGDW([half], **settings)
    descend(first, half, steps=3)
    second = SGDW([half], **{**settings, "weight_decay": 0.0})
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(descend(second, half, steps=3), expected[3:])


def test_only_kernels_and_matrices_decay():
    net = Small(classes=7, size=48)
    decaying, steady = parameter_groups(net, 0.1)
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.1, 0.0)
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    names = {named.pop(id(parameter)) for parameter in decaying["params"]}
    assert all(net.get_parameter(name).ndim in (2, 4) for name in names)
    assert "head.1.weight" in names
    assert {named.pop(id(parameter)) for parameter in steady["params"]} >= {
        "head.1.bias",
        "backbone.1.weight",
    }
    assert not named, "every parameter is in one group"


def test_frozen_parameters_are_left_out_and_the_optimizers_decay_is_the_default():
    net = Small(classes=7, size=48)
    freeze(net, "backbone")
    groups = parameter_groups(net)
    assert [len(group["params"]) for group in groups] == [1, 1]
    assert [group["weight_decay"] for group in torch.optim.AdamW(groups, weight_decay=0.2).param_groups] == [
        0.2,
        0.0,
    ]
    net.head[1].bias.requires_grad_(False)
    assert len(parameter_groups(net)) == 1


def test_muon_moves_inner_convolutions_by_a_nearly_orthogonal_step_and_the_rest_by_adam():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 4, 1))
    before = [weight.detach().clone() for weight in net.parameters()]
    optimizer = Muon(net.parameters(), lr=0.1, adam_lr=0.01, weight_decay=0.0)
    twin = torch.optim.Adam([before[0].clone().requires_grad_()], lr=0.01, betas=(0.9, 0.99))
    for weight in net.parameters():
        weight.grad = torch.randn_like(weight)
    twin.param_groups[0]["params"][0].grad = next(iter(net.parameters())).grad.clone()
    optimizer.step()
    twin.step()
    torch.testing.assert_close(next(iter(net.parameters())), twin.param_groups[0]["params"][0])
    moved = (net[1].weight - before[2]).detach().flatten(1) / -0.1
    values = torch.linalg.svdvals(moved)  # (16, 72): orthonormal rows have singular values of 1
    assert values.min() > 0.3 and values.max() < 1.6
    gradient = net[1].weight.grad.flatten(1)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_the_moving_average_forgets_the_first_steps_faster():
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update = moving_average(0.998)
    update(average, value, 1)  # decay 1 / 11
    torch.testing.assert_close(average[0], torch.full((2,), 10 / 11))
    update(average, [torch.zeros(2)], 100_000)  # decay 0.998
    torch.testing.assert_close(average[0], torch.full((2,), 10 / 11 * 0.998))
    counts = [torch.tensor([3])]
    update(counts, [torch.tensor([7])], 5)
    assert counts[0].item() == 7
