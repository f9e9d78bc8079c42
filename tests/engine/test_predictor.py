"""``defcn_d2.Predictor``: from a config and weights to detections, of arrays and of files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from demo_runs import tiny_weights
from PIL import Image
from tiny_data import CONFIG, TINY_MODEL, tiny_sets

import defcn_d2
from defcn_d2 import engine
from defcn_d2.config.load import load_config
from defcn_d2.engine.predictor import read_rgb, require_defcn
from defcn_d2.evaluation.stored_thresholds import write_thresholds
from defcn_d2.utils.errors import UserError

OPTS = [*TINY_MODEL, "TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="module")
def weights() -> Path:
    tiny_sets()
    return Path(tiny_weights())


@pytest.fixture(scope="module")
def predictor(weights: Path) -> defcn_d2.Predictor:
    return defcn_d2.Predictor("shapes/POTO-3DMF-Aux", weights, opts=OPTS)


def noise(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def same(a, b) -> bool:
    return (
        a.image_size == b.image_size
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
    )


def test_arrays_are_bgr_and_files_the_same(predictor, tmp_path):
    image = noise()
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    found = predictor(image)
    assert len(found) == 5 and found.image_size == (60, 90)
    assert (found.scores.diff() <= 0).all() and found.scores.device.type == "cpu"
    assert same(found, predictor(path)) and same(found, predictor(str(path)))
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    assert same(found, predictor.detections(rgb)) and not same(found, predictor.detections(image))


def test_lists(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / "b.png"), noise(40, 50, seed=1))
    found = predictor([noise(), tmp_path / "b.png", noise(64, 64, seed=2)])
    assert [x.image_size for x in found] == [(60, 90), (40, 50), (64, 64)]
    assert same(found[0], predictor(noise()))
    assert predictor([]) == [] and len(predictor((noise(),))) == 1


def test_a_config_may_be_a_file_or_an_object(weights, predictor):
    cfg = defcn_d2.get_config("shapes/POTO-3DMF-Aux", OPTS)
    for config, opts in ((cfg, []), (Path(CONFIG), OPTS)):
        assert same(
            defcn_d2.Predictor(config, str(weights), opts=opts)(noise()), predictor(noise())
        )
    assert cfg.MODEL.WEIGHTS == ""  # the caller's own stays as it is
    cfg = load_config(CONFIG, [*OPTS, "MODEL.WEIGHTS", str(weights)])
    assert same(defcn_d2.Predictor(cfg)(noise()), predictor(noise()))


def test_device_and_class_names(weights, predictor, monkeypatch):
    assert predictor.class_names[:2] == ["ellipse", "ring"]
    assert predictor.cfg.MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")
    assert predictor.cfg.is_frozen()
    on_cpu = defcn_d2.Predictor(CONFIG, weights, opts=[*OPTS, "MODEL.DEVICE", "cpu"])
    assert on_cpu.cfg.MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert defcn_d2.Predictor(CONFIG, weights, opts=OPTS).cfg.MODEL.DEVICE == "cpu"
    with pytest.raises(UserError, match="device 'cuda:1' is not there"):
        defcn_d2.Predictor(CONFIG, weights, opts=OPTS, device="cuda:1")


def test_names_of_own_data_from_a_config_object(weights, tmp_path):
    """As the config.yaml of a run has them; its files may be gone."""
    names = [f"thing {number}" for number in range(7)]
    keys = ["DATASETS.REGISTER.VAL.ANNOTATIONS", str(tmp_path / "val.json")]
    keys += ["DATASETS.REGISTER.VAL.IMAGES", str(tmp_path), "DATASETS.REGISTER.CLASSES", names]
    cfg = defcn_d2.get_config("shapes/POTO-3DMF-Aux", [*OPTS, *keys])
    assert defcn_d2.Predictor(cfg, weights).class_names == names


def test_exif_turns_a_file_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(noise(40, 80)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (80, 40, 3)


def test_bad_paths_are_named_at_once(predictor, tmp_path):
    good = tmp_path / "good.png"
    cv2.imwrite(str(good), noise())
    with pytest.raises(UserError, match="^2 of 3 images do not exist: 'no.jpg', 'nor.jpg'$"):
        predictor([good, "no.jpg", "nor.jpg"])
    with pytest.raises(UserError, match="^1 of 1 images do not exist: "):
        predictor(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match="text.jpg' cannot be read as an image"):
        predictor(tmp_path / "text.jpg")


@pytest.mark.parametrize(
    "image, sentence",
    [
        (None, "the image is None: cv2.imread gives that"),
        ([noise(), None], "image 1 of the list is None"),
        (noise()[:, :, 0], r"the image has shape \(60, 90\) and type uint8, but must be"),
        (noise().astype(np.float32), "type float32, but must be"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (noise()[None], r"shape \(1, 60, 90, 3\)"),
        ([3], "image 0 of the list is a int: give a path"),
    ],
)
def test_bad_arrays(predictor, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        predictor(image)


def test_images_of_pillow(predictor, tmp_path):
    """As of the file, whatever their mode; and turned upright."""
    image = Image.fromarray(noise())
    wide = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) << 8) + 7)
    for number, picture in enumerate([image, image.convert("L"), image.convert("P"), wide]):
        picture.save(tmp_path / f"{number}.png")
        expected = predictor(tmp_path / f"{number}.png")
        assert len(expected) == 5
        assert same(predictor(picture), expected) and same(predictor([picture])[0], expected)
    assert same(predictor(image), predictor(noise()[:, :, ::-1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = predictor(Image.open(tmp_path / "turned.jpg"))
    assert found.image_size == (90, 60) and same(found, predictor(tmp_path / "turned.jpg"))
    with pytest.raises(ValueError, match="mode 'F', floats of 32 bits"):
        predictor(image.convert("F"))


def test_weights_in_the_home_folder(weights, predictor, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.pth").write_bytes(weights.read_bytes())
    cfg = defcn_d2.get_config("shapes/POTO-3DMF-Aux", OPTS)
    for config in (CONFIG, cfg):
        found = defcn_d2.Predictor(config, "~/model.pth", opts=OPTS)
        assert found.cfg.MODEL.WEIGHTS == str(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "config, weights_file, sentence",
    [
        ("shapes/POTO", "no.pth", "weights 'no.pth' do not exist"),
        ("shapes/POTOX", None, "'shapes/POTOX' does not exist; did you mean 'shapes/POTO'"),
        ("no.yaml", None, "'no.yaml' does not exist"),
    ],
)
def test_bad_models(weights, config, weights_file, sentence):
    with pytest.raises(UserError, match=sentence):
        defcn_d2.Predictor(config, weights_file or weights)


def test_it_is_found_in_the_package():
    assert defcn_d2.Predictor is engine.Predictor
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        defcn_d2.Nothing  # noqa: B018


def test_other_models_are_refused_where_a_defcn_is_needed(predictor):
    assert require_defcn(predictor.model, "is exported") is predictor.model
    with pytest.raises(UserError, match="the model is a ReLU: only a DeFCN is exported"):
        require_defcn(torch.nn.ReLU(), "is exported")


def stored(folder: Path, weights: Path, threshold: float) -> Path:
    """A copy of the weights with a threshold beside it."""
    copy = folder / "model_final.pth"
    copy.write_bytes(weights.read_bytes())
    write_thresholds(folder, {"threshold": threshold, "f1": 0.5})
    return copy


def test_the_stored_threshold_counts(weights, predictor, tmp_path, caplog):
    caplog.set_level("INFO", "defcn_d2")
    everything = predictor(noise())
    assert predictor.confidence is None and len(everything) == 5
    third = float(everything.scores[2])
    copy = stored(tmp_path, weights, third)
    for wanted in ({}, {"confidence": "best"}):
        best = defcn_d2.Predictor("shapes/POTO-3DMF-Aux", copy, opts=OPTS, **wanted)
        assert best.confidence == third and same(best(noise()), everything[:3])
    line = f"confidence {third:.3f}, by which F1 was 0.500: {tmp_path / 'thresholds.json'}"
    assert line in caplog.text
    cfg = load_config("shapes/POTO-3DMF-Aux", [*OPTS, "MODEL.WEIGHTS", str(copy)])
    assert same(defcn_d2.Predictor(cfg)(noise()), everything[:3])
    assert same(defcn_d2.Predictor(cfg, confidence=None)(noise()), everything)
    second = float(everything.scores[1])
    assert same(defcn_d2.Predictor(cfg, confidence=second)(noise()), everything[:2])


def test_a_confidence_below_the_threshold_of_the_config(weights, predictor):
    everything = predictor(noise())
    high = [*OPTS, "MODEL.DEFCN.SCORE_THRESH_TEST", str(float(everything.scores[1]))]
    few = defcn_d2.Predictor("shapes/POTO-3DMF-Aux", weights, opts=high)
    assert len(few(noise())) < 5
    all_of_them = defcn_d2.Predictor("shapes/POTO-3DMF-Aux", weights, opts=high, confidence=0.0)
    assert same(all_of_them(noise()), everything)


def test_best_without_a_stored_threshold(weights):
    with pytest.raises(UserError, match="no thresholds.json beside the weights"):
        defcn_d2.Predictor("shapes/POTO-3DMF-Aux", weights, opts=OPTS, confidence="best")
