"""The runner's arithmetic of batches, on a CPU with a stand-in for the graphs; the graphs themselves where there is a GPU."""

from __future__ import annotations

from threading import Thread
from time import sleep

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from kernels import Runner
from kernels.runner import BATCHES, Graphs, parts


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6 * 6, 5)).eval()


class Padded:
    """What Graphs does, without graphs: a buffer that is never cleaned, answers that the next call overwrites."""

    def __init__(self, module):
        self.module, self.sizes, self.buffers, self.busy = module, [], {}, False

    def __call__(self, images, size):
        assert not self.busy
        self.busy = True
        answer = self.answer(images, size)
        self.busy = False
        return answer

    def answer(self, images, size):
        self.sizes.append(size)
        sleep(0.0005)
        buffer = self.buffers.setdefault(size, torch.full((size, *images.shape[1:]), torch.nan))
        buffer[: len(images)].copy_(images)
        return self.module(buffer)[: len(images)].clone()


@pytest.mark.parametrize("images", range(1, 200))
def test_parts_cover_a_batch_once_and_in_order(images):
    found = parts(images, BATCHES)
    assert [index for start, stop, _ in found for index in range(start, stop)] == list(range(images))
    for start, stop, size in found:
        assert size in BATCHES and size >= stop - start
        assert not [smaller for smaller in BATCHES if stop - start <= smaller < size]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (0, [(0, 0, 2)]),
        (1, [(0, 1, 2)]),
        (5, [(0, 5, 8)]),
        (8, [(0, 8, 8)]),
        (9, [(0, 8, 8), (8, 9, 2)]),
        (19, [(0, 8, 8), (8, 16, 8), (16, 19, 8)]),
    ],
)
def test_parts_of_a_batch(images, expected):
    assert parts(images, (2, 8)) == expected


@pytest.mark.parametrize("images", [0, 1, 3, 8, 9, 21])
def test_padding_and_splitting_change_no_answer(images):
    run = Runner(net(), batches=(8, 1, 4))
    run.execute = Padded(run.module)
    batch = torch.randn(images, 3, 8, 8)
    torch.testing.assert_close(run(batch), net()(batch))
    assert run.execute.sizes == {0: [1], 1: [1], 3: [4], 8: [8], 9: [8, 1], 21: [8, 8, 8]}[images]


def test_prepare_meets_every_size():
    run = Runner(net(), batches=(1, 2, 4))
    run.execute = Padded(run.module)
    run.prepare(torch.randn(1, 3, 8, 8))
    assert run.execute.sizes == [1, 2, 4]


def test_an_answer_is_not_overwritten_by_the_next():
    run = Runner(net(), batches=(2,))
    run.execute = Padded(run.module)
    first, second = torch.randn(2, 2, 3, 8, 8)
    answer = run(first)
    run(second)
    torch.testing.assert_close(answer, net()(first))


def test_threads_take_turns():
    run, answers = Runner(net(), batches=(1, 2, 4)), {}
    run.execute = Padded(run.module)
    batches = torch.randn(8, 3, 3, 8, 8)

    def ask(index):
        for _ in range(10):
            answers[index] = run(batches[index])

    threads = [Thread(target=ask, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, batch in enumerate(batches):
        torch.testing.assert_close(answers[index], net()(batch))


def exported(batch=None, **limits):
    shapes = ({0: Dim("batch", **limits)},) if batch is None else None
    return export(net(), (torch.randn(limits.get("min", 2), 3, 8, 8),), dynamic_shapes=shapes)


def test_a_program_on_a_cpu_is_called_as_it_is():
    run = Runner(exported())
    for images in (1, 5, 100):
        batch = torch.randn(images, 3, 8, 8)
        answer = run(batch)
        torch.testing.assert_close(answer, net()(batch))
        assert not answer.requires_grad
    assert run.execute is None


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({}, BATCHES),
        ({"max": 12}, (1, 2, 4, 8, 12)),
        ({"max": 16}, (1, 2, 4, 8, 16)),
        ({"min": 3, "max": 40}, (3, 4, 8, 16, 32, 40)),
        ({"min": 100, "max": 200}, (100,)),
    ],
)
def test_a_program_is_given_no_batch_that_it_was_not_exported_for(limits, sizes):
    run = Runner(exported(**limits))
    assert run.batches == sizes
    run.execute = Padded(run.module)
    for images in (1, 9, 33):
        batch = torch.randn(images, 3, 8, 8)
        torch.testing.assert_close(run(batch), net()(batch))


def test_a_module_is_put_into_evaluation():
    assert torch.equal(*[Runner(nn.Dropout(0.5).train())(torch.ones(2, 9)) for _ in range(2)])


def test_a_program_for_one_batch_size_is_refused():
    with pytest.raises(ValueError, match="exported for batches of 2; export it with a dynamic batch"):
        Runner(exported(batch=2))


def test_no_sizes_are_refused():
    with pytest.raises(ValueError, match="batches"):
        Runner(net(), batches=())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("program", [net, exported])
def test_graphs_give_what_the_net_gives(program):
    run = Runner(program(), device="cuda", batches=(1, 2, 4, 8))
    assert isinstance(run.execute, Graphs)
    expected = net().cuda()
    answers = {}
    batches = {images: torch.randn(images, 3, 8, 8, device="cuda") for images in (0, 3, 1, 8, 2, 21, 5, 3)}
    for images, batch in batches.items():
        answers[images] = run(batch)
        torch.testing.assert_close(run(batch.cpu()), answers[images])
    for images, batch in batches.items():
        torch.testing.assert_close(answers[images], expected(batch), rtol=1e-3, atol=1e-3)
    assert {key[0] for key in run.execute.captured} == {1, 2, 4, 8}
