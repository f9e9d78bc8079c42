"""tools/benchmarks deploy: what it measures, on small images and networks."""

from __future__ import annotations

import sys
from collections import Counter

import benchmarks.__main__ as benchmark
import pytest
import torch
from benchmarks import deploy, deploy_models, deploy_runtimes, detectors
from benchmarks.deploy_runtimes import ONNX, ONNX_INT8, PYTORCH
from test_benchmark_detectors import SMALL

from defcn_d2.export import artifacts

SSDLITE = deploy_models.TORCHVISION[2]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "BACKBONE_OPTIONS", [*SMALL, "MODEL.DEFCN.NUM_CONVS", 1])
    monkeypatch.setattr(deploy_models, "TORCHVISION_OPTIONS", {"num_classes": 4})
    monkeypatch.setattr(deploy_models, "CANDIDATES", 50)
    groups = {"small": deploy.Group(("POTO",), (detectors.RETINANET,), (64, 96))}
    monkeypatch.setattr(deploy, "GROUPS", groups)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "deploy", "--groups", "small", *arguments])
    benchmark.main()


def make_image(height: int = 64, width: int = 96) -> torch.Tensor:
    return 255 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(deploy_runtimes.RUNTIMES, deploy_runtimes.OPENVINO, ("no_such_package",))
    runtimes = ["--runtimes", PYTORCH, ONNX, ONNX_INT8, deploy_runtimes.OPENVINO]
    run(monkeypatch, "--rounds", "2", "--clock", "cpu", *runtimes)
    out = capsys.readouterr().out
    assert "OpenVINO is left out; not installed: no_such_package." in out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows] == [
        ["detector", "runtime"],
        *(["POTO", runtime] for runtime in (PYTORCH, ONNX, ONNX_INT8)),
        [detectors.RETINANET, PYTORCH],
    ]
    assert rows[0][-1] == f"{detectors.RETINANET} takes"
    assert rows[1][3] == "1.00x" and rows[4][-1] == "1.00x"
    assert all(row[4].endswith(" %") for row in rows[1:])


def test_equal_numbers_of_candidates() -> None:
    for name in (*detectors.names(), *deploy_models.TORCHVISION):
        if name in detectors.OURS and name != "POTO":
            continue
        peer = deploy_models.build(name, make_image())
        assert deploy_models.passing(peer) == pytest.approx(50, abs=1), name
        found = peer()[0]
        found = found["scores"] if "scores" in found else found["instances"].scores
        assert 0 < len(found) <= 300 and found.isfinite().all()


def test_an_export_that_gives_other_scores_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, images = deploy_models.build("POTO", make_image()), [make_image()]
    detector, off = deploy_models.OneSize(peer, images[0]), 0.0

    def wrong(images: torch.Tensor) -> list[torch.Tensor]:
        boxes, scores, classes = detector(images)
        return [boxes, scores + off, classes]

    artifact = artifacts.Artifact(b"", wrong, Counter())
    monkeypatch.setattr(artifacts, "onnx_model", lambda detector: None)
    monkeypatch.setattr(artifacts, "export_onnx", lambda *arguments: artifact)
    monkeypatch.setattr(deploy_runtimes, "_ending", lambda *arguments: None)
    assert list(deploy_runtimes.of_ours(peer, [ONNX], images, lambda: 0.0)) == [ONNX]
    off = 0.1
    with pytest.raises(AssertionError):
        deploy_runtimes.of_ours(peer, [ONNX], images, lambda: 0.0)


def test_ssd_with_its_nms_as_onnx() -> None:
    pytest.importorskip("onnxruntime")
    peer = deploy_models.build(SSDLITE, make_image(320, 320))
    rows = deploy_runtimes.of_others(peer, [PYTORCH, ONNX], lambda: 0.0)
    assert list(rows) == [PYTORCH, ONNX]
    assert len(rows[ONNX].call()[0]) == len(rows[PYTORCH].call()[0]["boxes"])


def test_seconds_after_the_head() -> None:
    peer = deploy_models.build("POTO", make_image())
    ticks = iter(range(100))
    peer.time_after_head(lambda: float(next(ticks)))
    peer()
    peer()
    assert peer.seconds == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--runtimes", "TensorRT"], "--runtimes 'TensorRT' is unknown; of: PyTorch, "),
        (["--detectors", "YOLO"], "--detectors 'YOLO' is unknown; of: POTO, "),
        (["--groups", "big"], "--groups 'big' is unknown; of: small"),
        (["--image", "100", "64"], "--image must be two multiples of 32, got 100 64"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, *arguments)
    assert str(raised.value).startswith(message)
