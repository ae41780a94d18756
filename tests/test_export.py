"""Really trained small nets as files: they say what the net says, on real faces, read back as a user reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fer_lab.cli import UsageError
from fer_lab.export import export
from fer_lab.exporting.facts import CannotExport, ExportError, Facts, FileError
from fer_lab.exporting.files import staged
from fer_lab.exporting.onnx import OnnxProgram
from fer_lab.exporting.program import load, save
from fer_lab.tracking.forward import settle
from fer_lab.tracking.record import TrackingError
from fer_lab.train import train
from tests.composing import composed

TINY = (
    "trainer=smoke", "trainer.accelerator=cpu", "threads=1", "data.size=32", "data.batch_size=8",
    "data.source.train=16", "data.source.validation=14", "data.source.test=14",
)  # fmt: skip
LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger")


class Kept:
    """A trial that keeps its weights: the cheapest run that trains, without figures and test faces."""

    name, parent, tags = "0", "", {"fer.trial": "0"}

    def report(self, epochs: int, score: float) -> bool:
        return False

    def keeps(self, score: float) -> bool:
        return True


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_store) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(empty_store, folder / "mlflow.db")
    yield folder
    settle()


def trained(home: Path, *words: str) -> Path:
    """The folder of a run that these words trained, now or before."""
    return home / "runs" / train(composed("train", home, *TINY, *words), Kept()).run


def exported(home: Path, run: Path, *words: str) -> dict[str, Path]:
    paths = export(composed("export", home, f"run={run.name}", *words))
    return {path.suffix or path.name: path for path in paths}


def judged(home: Path, run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The run's validation pixels (B, C, S, S) and its probabilities by the way of `evaluate`, which exports nothing."""
    from fer_lab.evaluate import judge, rebuild

    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    module, data = rebuild(run, config)
    found = judge(module, data, "validation", config.views)
    return torch.from_numpy(data.cache.images[found.rows]), torch.from_numpy(found.probabilities)


@pytest.fixture(scope="module")
def vgg19(home) -> tuple[Path, dict[str, Path]]:
    """A VGG19 that trained, and all files of it."""
    run = trained(home, "model=vgg19", "model.weights=null", "model.freeze=none")
    return run, exported(home, run)


def test_a_vgg19_is_a_program_an_onnx_file_and_text_that_say_what_it_says(home, vgg19):
    run, files = vgg19
    assert set(files) == {".pt2", ".onnx", "model_weights"}
    pixels, expected = judged(home, run)
    assert len({int(row.argmax()) for row in expected}) >= 1 and expected.shape == (14, 7)
    for program in (load(files[".pt2"]), OnnxProgram(files[".onnx"])):
        for part in (slice(0, 1), slice(0, 3), slice(0, 14)):  # any batch, not only the one that was traced
            torch.testing.assert_close(program(pixels[part]), expected[part], atol=1e-5, rtol=1e-4)
        facts = program.facts
        assert (facts.run, facts.classes, facts.size, facts.channels) == (run.name, LABELS, 32, 1)
        assert len(facts.checkpoint) == 64 and facts.versions["torch"] == torch.__version__.partition("+")[0]
    (taken,) = OnnxProgram(files[".onnx"]).session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("pixels", "tensor(uint8)", ["batch", 1, 32, 32])
    called = {str(node.target) for node in load(files[".pt2"]).exported.graph.nodes}
    assert not [name for name in called if "dropout" in name or "norm" in name]


def test_text_weights_are_r0s_and_come_back_bit_for_bit(home, vgg19, tmp_path):
    run, files = vgg19
    folder = files["model_weights"].parent
    numbers = [int(word) for word in (folder / "dimensions.txt").read_text().split()]
    assert len(numbers) == 68
    assert numbers[:8] == [3, 3, 3, 64, 3, 3, 64, 64] and numbers[-4:] == [512, 512, 512, 7]
    names = sorted(path.name for path in files["model_weights"].iterdir())
    assert len(names) == 18 and names[:3] == ["conv1_1.txt", "conv1_2.txt", "conv2_1.txt"]

    kept = torch.load(run / "best.pt", weights_only=True)
    for name, weight, bias in (
        ("conv1_2", "backbone.2.weight", "backbone.2.bias"),
        ("dense2", "head.4.weight", "head.4.bias"),
    ):
        said = [float(line) for line in (files["model_weights"] / f"{name}.txt").read_text().splitlines()]
        meant = [*kept[weight].flatten().tolist(), *kept[bias].tolist()]  # (out, in, kh, kw), then the bias
        assert torch.equal(torch.tensor(said), torch.tensor(meant))

    (path,) = export(composed("export", home, f"text={folder}", f"output={tmp_path}/again"))
    again, first = load(path), load(files[".pt2"])
    assert path == tmp_path / "again/model.pt2" and again.facts == first.facts
    for ours, theirs in zip(
        again.exported.state_dict.values(), first.exported.state_dict.values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    pixels = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(again(pixels), first(pixels), atol=1e-6, rtol=1e-5)


def test_a_vgg19_with_batch_norm_has_it_folded_away(home):
    run = trained(home, "model=vgg19_bn", "model.weights=null", "model.freeze=none", "views=flip")
    files = exported(home, run, "formats=[pt2]")
    assert set(files) == {".pt2"}
    program, (pixels, expected) = load(files[".pt2"]), judged(home, run)
    torch.testing.assert_close(program(pixels), expected, atol=1e-5, rtol=1e-4)
    called = [str(node.target) for node in program.exported.graph.nodes]
    assert called.count("aten.conv2d.default") == 16  # both views at once
    assert not [name for name in called if "norm" in name or "dropout" in name]


def test_residual_nets_lose_their_norms_and_have_no_text(home, capsys):
    for words, norms in ((("model=resnet18",), 20), (("views=ten", "ema=0.9"), 9)):
        run = trained(home, *words)
        files = exported(home, run)
        assert set(files) == {".pt2", ".onnx"}
        said = capsys.readouterr().out
        assert "no text: text weights know only a line of plain convolutions" in said
        assert f", {norms} batch norms folded; held against it on 14 validation faces of synthetic" in said
        pixels, expected = judged(home, run)
        for program in (load(files[".pt2"]), OnnxProgram(files[".onnx"])):
            torch.testing.assert_close(program(pixels), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(CannotExport, match=r"as in VGG; here backbone\.0 is Conv2d.*stride=\(2, 2\)"):
        exported(home, run, "formats=[text]")


def test_a_swapped_program_has_our_kernels_in_it_and_says_the_same(home, capsys):
    run = trained(home, "views=ten", "ema=0.9")
    plain, swapped = export(composed("export", home, f"run={run.name}", "formats=pt2", "swap=float16"))
    assert (plain.name, swapped.name) == (f"{run.name}.pt2", f"{run.name}.float16.pt2")
    assert "10 layers in float16, 0 kept" in capsys.readouterr().out
    program, (pixels, expected) = load(swapped), judged(home, run)
    for part in (slice(0, 14), slice(0, 1)):
        torch.testing.assert_close(program(pixels[part]), expected[part], atol=1e-4, rtol=0)
    called = [str(node.target) for node in program.exported.graph.nodes]
    assert called.count("fer_kernels.convolution.default") == 9 and "aten.conv2d.default" not in called
    assert (program.facts.precision, program.facts.views) == ("float16", "ten")
    assert swapped.stat().st_size < 0.6 * plain.stat().st_size


@pytest.fixture(scope="module")
def boxed(home) -> Path:
    """A run on the faces that RAF-DB's own boxes cut out."""
    from fer_lab.data.layouts import write_rafdb

    root = write_rafdb(home / "rafdb", {"train": 28, "test": 14})
    words = [word for word in TINY if not word.startswith("data.source")]
    words += ["data=rafdb", f"data.root={root}", "data.source.images=original", "data.limit=20"]
    crop = ("data.crop=box", "data.margin=0.2")
    return home / "runs" / train(composed("train", home, *words, *crop, "data.channels=1"), Kept()).run


@pytest.mark.filterwarnings("ignore:.*results will not compare")
def test_a_file_says_how_its_faces_were_cut_out(home, boxed):
    facts = load(exported(home, boxed, "formats=[pt2]")[".pt2"]).facts
    assert (facts.face_crop, facts.margin, facts.crop) == ("box", 0.2, None)
    assert Facts.of_text(facts.as_text(), "here") == facts
    older = {name: text for name, text in facts.as_text().items() if name not in ("face_crop", "margin")}
    read = Facts.of_text(older, "here")
    assert (read.face_crop, read.margin) == ("none", 0.0)


@pytest.mark.filterwarnings("ignore:.*results will not compare")
def test_a_run_is_judged_on_pictures_cut_as_those_that_trained_it(home, boxed):
    from fer_lab.evaluate import overridden

    def judged_on(*words: str) -> DictConfig:
        saved = OmegaConf.load(boxed / "config.yaml")
        assert isinstance(saved, DictConfig)
        return overridden(saved, composed("evaluate", home, f"run={boxed.name}", *words)).data

    own = judged_on("data=rafdb", "data.root=/elsewhere", "data.batch_size=5")
    assert (own.root, own.source.root, own.batch_size) == ("/elsewhere", "/elsewhere", 5)
    assert (own.source.images, own.crop, own.margin, own.size, own.limit) == ("original", "box", 0.2, 32, 20)
    other = judged_on("data=affectnet", "data.root=/elsewhere")
    assert (other.crop, other.margin, other.size, other.channels) == ("box", 0.2, 32, 1)
    assert (other.source.root, other.limit) == ("/elsewhere", None)
    assert judged_on("data=fer2013", "data.crop=none", "data.size=40").crop == "none"


def test_the_command_shows_what_it_wrote_and_a_file_needs_nothing_of_ours(command, home, tmp_path):
    run = trained(home)
    places = (f"runs_dir={home}/runs", f"cache_dir={home}/cache")
    done = command("export", f"run={run.name}", "formats=pt2", f"output={tmp_path}/out", *places, store=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{run.name}\.pt2 +│ +\d\.\d MB │ +\S+ │ +14 of 14", done.stdout), done.stdout
    assert f'load("{tmp_path}/out/{run.name}.pt2")' in done.stdout
    script = "import sys, torch; torch.export.load(sys.argv[1]); assert 'fer_lab' not in sys.modules"
    alone = [sys.executable, "-c", script, str(tmp_path / f"out/{run.name}.pt2")]
    subprocess.run(alone, cwd=tmp_path, check=True)


def test_an_export_that_is_not_the_net_is_an_error_and_leaves_what_was_there(home, monkeypatch):
    from fer_lab.exporting import files

    run = trained(home)
    (good,) = exported(home, run, "formats=pt2").values()
    before = good.read_bytes()

    def spoiled(traced, path, facts):
        traced.state_dict["net.head.1.bias"].data[0] += 0.05
        save(traced, path, facts)

    monkeypatch.setattr(files.program, "save", spoiled)
    with pytest.raises(
        ExportError, match=r"\.pt2 differs from the trained net by 0\.0\d+ in probability over 14"
    ):
        exported(home, run, "formats=[pt2]")
    assert good.read_bytes() == before
    assert not [path for path in good.parent.iterdir() if path.name.startswith(".")]
    with pytest.raises(ExportError):
        exported(home, run, "formats=[pt2]", f"output={home}/nowhere")
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "name a trained run (run=ID) or a folder of text weights (text=FOLDER): one of them"),
        (("run=x", "text=y"), "one of them"),
        (("run=x", "formats=[pt3,onx]"), "formats=pt3: no such format (did you mean pt2?); choices: pt2, onnx, text\nformats=onx"),
        (("run=x", "swap=fp16"), "swap=fp16: no such precision (did you mean float16 or bfloat16?); choices: float16"),
        (("run=nothing-like-it",), "run=nothing-like-it is not in"),
        (("run=weightless",), "has no config.yaml and best.pt: the run finished no epoch, or is a trial of a sweep"),
        (("text=/nowhere",), "/nowhere has no net.json, so it holds no text weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_told_with_the_choices(home, words, expected):
    (home / "runs/weightless").mkdir(parents=True, exist_ok=True)
    (home / "runs/weightless/config.yaml").write_text("{}")
    with pytest.raises((UsageError, FileError, TrackingError)) as caught:
        export(composed("export", home, *words))
    assert expected in str(caught.value)


def test_without_the_extra_onnx_is_left_out_or_refused_with_what_to_type(home, monkeypatch, capsys):
    from fer_lab.exporting import onnx

    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else "there")
    run = trained(home)
    assert set(exported(home, run)) == {".pt2"}
    assert "no onnx: ONNX needs onnxscript: pip install 'fer_lab[export]'" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"pip install 'fer_lab\[export\]'"):
        exported(home, run, "formats=[onnx]")


def test_help_comes_without_torch():
    script = (
        "import sys, runpy; sys.argv = ['export', '--help']\n"
        "runpy.run_module('fer_lab.export', run_name='__main__')\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "run=ID" in done.stdout and "formats: null" in done.stdout


def test_a_folder_is_replaced_whole_and_no_half_of_it_stays(tmp_path):
    output = tmp_path / "out"
    for content in ("old", "new"):
        with staged(output) as stage:
            (stage / "weights").mkdir()
            (stage / "weights" / content).write_text(content)
    assert [path.relative_to(output).as_posix() for path in output.rglob("*")] == ["weights", "weights/new"]
    with pytest.raises(KeyboardInterrupt), staged(output) as stage:
        (stage / "weights").mkdir()
        raise KeyboardInterrupt
    assert [path.relative_to(output).as_posix() for path in output.rglob("*")] == ["weights", "weights/new"]
