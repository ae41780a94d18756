"""The registry, on a real store: what comes back out is the net that went in."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from fer_lab.tracking.models import register_champion
from fer_lab.tracking.record import TrackingError
from fer_lab.tracking.store import connect, open_client

FACES = np.random.default_rng(0).integers(0, 256, (2, 1, 12, 12), dtype=np.uint8)
REQUIREMENTS = [f"torch=={torch.__version__}", f"numpy=={np.__version__}"]


class Net(nn.Module):
    """uint8 faces to probabilities, with a layer that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.convolution(images.float() / 255).relu().mean((2, 3))  # (B, 4)
        return self.head(self.dropout(x)).softmax(1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture(scope="module")
def run_id(uri: str) -> str:
    client, experiment = connect(uri, "sweeps")
    run = client.create_run(experiment)
    client.set_terminated(run.info.run_id, "FINISHED", end_time=1_000)
    return run.info.run_id


def test_a_champion_comes_back_as_the_same_net(uri, run_id, monkeypatch):
    torch.manual_seed(0)
    net = Net()
    first = register_champion(uri, run_id, net, FACES, "quick", REQUIREMENTS, {"sweep": "quick"})
    second = register_champion(uri, run_id, net, FACES, "quick", REQUIREMENTS)
    client = open_client(uri)
    champion = client.get_model_version_by_alias("quick", "champion")
    assert (first, second, str(champion.version)) == ("1", "2", "2")
    assert client.get_model_version("quick", "1").tags == {"sweep": "quick"}
    assert champion.run_id == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_000), "registering touched the finished run"
    assert len(run.outputs.model_outputs) == 2

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as a user would
    place = Path(mlflow.artifacts.download_artifacts("models:/quick@champion"))
    assert (place / "requirements.txt").read_text().split() == [
        f"mlflow=={mlflow.__version__}",
        *REQUIREMENTS,
    ]
    described = mlflow.models.Model.load(str(place))
    assert described.signature.inputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "uint8",
        "shape": (-1, 1, 12, 12),
    }
    assert described.load_input_example(str(place)).tolist() == FACES.tolist()
    served = mlflow.pyfunc.load_model(str(place))
    more = np.random.default_rng(1).integers(0, 256, (5, 1, 12, 12), dtype=np.uint8)
    expected = net.eval()(torch.from_numpy(more))  # another batch size, and no dropout
    torch.testing.assert_close(torch.from_numpy(served.predict(more)), expected.detach())


def test_a_store_that_cannot_is_named(uri, tmp_path):
    with pytest.raises(
        TrackingError, match=r"run ffff is not registered as models:/quick@champion in sqlite.*ffff"
    ):
        register_champion(uri, "ffff", Net(), FACES, "quick", REQUIREMENTS)
    with pytest.raises(TrackingError, match=r"me:\*\*\*@127\.0\.0\.1:9") as caught:
        register_champion("http://me:secret@127.0.0.1:9", "ffff", Net(), FACES, "quick", REQUIREMENTS)
    assert "secret" not in str(caught.value)
