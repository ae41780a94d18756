"""Several processes that train one net: each computes its share of a total batch, and all of them see the whole of it."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from fer_lab.data.faces import Faces


def whole_batch(outputs: Tensor, faces: Faces) -> tuple[Tensor, Faces]:
    """Outputs (T, O), labels, affect and positions of the total batch, in its order, out of every process's share.

    So any loss is that of the total batch, also one that is no mean over faces, and the last batch weighs right however
    it is shared. Gradients reach this process's outputs alone: the parts of a sum, which DDP divides by their number.
    """
    if faces.total is None:
        return outputs, faces
    if outputs.requires_grad:
        outputs.register_hook(lambda gradient: gradient * distributed.get_world_size())
    shares = (faces.labels, faces.positions, faces.affect)
    labels, positions, affect = (None if one is None else whole(one, faces.total) for one in shares)
    assert labels is not None and positions is not None
    return whole(outputs.float(), faces.total), Faces(positions, labels, positions, affect=affect)


def whole(share: Tensor, total: int) -> Tensor:
    """(T, …) out of the (n, …) of every process, which are fer_lab.data.sharing.Share.of(T)."""
    shares = [torch.empty_like(share) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shares, share.detach().contiguous())
    shares[distributed.get_rank()] = share
    return torch.stack(shares, dim=1).flatten(0, 1)[:total]


def share_buffers(module: nn.Module) -> None:
    """Everyone's batch norms go on from the first process's: each has seen its own faces in the last step."""
    for buffer in module.buffers():
        distributed.broadcast(buffer, src=0)
