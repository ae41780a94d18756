"""python -m tests.two_of_a_batch FOLDER: two processes take the loss of their shares of a batch, and get its gradients.

For tests/test_distributed.py: a process that has computed gradients, as pytest's may have, cannot be forked for this.
"""

from __future__ import annotations

import itertools
import os
import sys

import torch
from torch import distributed

from fer_lab.data.faces import EXPRESSIONS, Faces
from fer_lab.data.sharing import Share
from fer_lab.learning.losses import concordance_loss
from fer_lab.learning.sharing import whole_batch
from fer_lab.learning.tasks import Emotion


def losses(outputs: torch.Tensor, faces: Faces) -> dict[str, torch.Tensor]:
    task = Emotion(EXPRESSIONS[:3])
    task.class_weights = torch.tensor([1.0, 5.0, 0.2])
    assert faces.affect is not None
    return {"weighted": task.loss(outputs, faces), "ccc": concordance_loss(outputs[:, :2], faces.affect)}


def batch_of(total: int) -> tuple[torch.Tensor, Faces]:
    generator = torch.Generator().manual_seed(total)
    inputs, affect = torch.randn(total, 4, generator=generator), torch.randn(total, 2, generator=generator)
    positions = torch.arange(total)
    return inputs, Faces(positions, positions % 3, positions, affect=affect)


def gradients(inputs: torch.Tensor, faces: Faces, kind: str) -> torch.Tensor:
    weight = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    losses(*whole_batch(inputs @ weight.T, faces))[kind].backward()
    assert weight.grad is not None
    return weight.grad


def one_of_two(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    for total, kind in itertools.product((1, 2, 3, 8, 13), ("weighted", "ccc")):
        inputs, faces = batch_of(total)
        mine = Share(rank, 2).of(total)
        share = Faces(mine, faces.labels[mine], mine, affect=faces.affect[mine], total=total)  # type: ignore[index]
        found = gradients(inputs[mine], share, kind)
        distributed.all_reduce(found)  # what DDP does
        torch.testing.assert_close(found / 2, gradients(inputs, faces, kind), atol=1e-6, rtol=1e-5)
        outputs, back = whole_batch(inputs[mine], share)
        assert torch.equal(outputs, inputs) and torch.equal(back.positions, faces.positions)
        assert torch.equal(back.labels, faces.labels)
    distributed.destroy_process_group()


if __name__ == "__main__":
    child = os.fork()
    one_of_two(rank=int(child == 0), place=sys.argv[1])
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
