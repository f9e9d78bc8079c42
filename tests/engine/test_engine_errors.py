"""Each mistake gives one sentence that names it and the remedy, status 1, and no traceback."""

import errno
import json
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.config.load import keys_of, load_config, value_at_fault
from defcn_d2.data import DatasetError
from defcn_d2.engine import run
from defcn_d2.engine import train_command as command_line
from defcn_d2.engine.datasets import load_records
from defcn_d2.engine.evaluators import metric_names
from defcn_d2.engine.preflight import check
from defcn_d2.engine.reporting import describe, reported
from defcn_d2.engine.trainer import Trainer
from defcn_d2.utils.errors import UserError, as_user_error, did_you_mean
from defcn_d2.weights.reader import CheckpointError


@pytest.fixture(autouse=True, scope="module")
def _data():
    tiny_sets()


def checked(*arguments: str) -> None:
    """Load and check the config of a command line on the tiny sets; arguments come last."""
    flags = [x for x in arguments if x.startswith("--")]
    opts = [x for x in arguments if not x.startswith("--")]
    command = [*flags, "--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, *opts]
    args = default_argument_parser().parse_args(command)
    check(load_config(args.config_file, args.opts), args)


KEYS = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS]
CLIP = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True"]


def test_a_good_command_passes():
    checked()


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["MODEL.DEFCN.NUM_CLASS", "3"], "'MODEL.DEFCN.NUM_CLASS'; did you mean '.*NUM_CLASSES'?"),
        (["DEFCN.NUM_CLASSES", "3"], "did you mean 'MODEL.DEFCN.NUM_CLASSES'?"),
        (
            ["MODEL.DEFCN.MATCHER", "POTO"],
            "'MODEL.DEFCN.MATCHER' is a group of keys: NAME, ATSS, Anchor, ",
        ),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER is 'many', but must be an int, such as "),
        (["SOLVER.BASE_LR", "1"], r"SOLVER.BASE_LR is '1', but must be a float, such as 0\."),
        (["DATASETS.TRAIN", "a"], r"""must be a tuple, such as "\('a',\)\""""),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER=3"], "write KEY VALUE, not KEY=VALUE"),
        (["SOLVER.MAX_ITER", "3", "--eval-only"], "put options before"),
    ],
)
def test_bad_key_or_value(opts, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(CONFIG, opts)


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("MODEL: [", "bad.yaml', line 1.*cannot be read"),
        ("_BASE_: nothing.yaml\nA: 1", "is based on '.*nothing.yaml', which does not exist"),
        ("VERSION: 2\nMODEL:\n  DEFCN:\n    NORMS: 3", "'MODEL.DEFCN.NORMS'; did you mean"),
        ("VERSION: 2\nSOLVER:\n  MAX_ITER: many", "SOLVER.MAX_ITER is 'many', but must be an int"),
        ("VERSION: 2\nMODEL: 3", "MODEL is a group of keys, but is set to '3'"),
        ("just words", "bad.yaml"),
    ],
)
def test_bad_config_file(tmp_path, content, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_missing_config_file(tmp_path):
    (tmp_path / "POTO-3DMF.yaml").touch()
    with pytest.raises(UserError, match="POTO-3DFM.yaml' does not.*did you mean '.*POTO-3DMF.yaml"):
        load_config(str(tmp_path / "POTO-3DFM.yaml"))
    with pytest.raises(UserError, match="there is no folder '.*nowhere'"):
        load_config(str(tmp_path / "nowhere" / "POTO.yaml"))
    with pytest.raises(UserError, match="not a .yaml file"):
        load_config(__file__)


BEST = ["TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_BEST"]


@pytest.mark.parametrize(
    "metric, opts",
    [
        ("bbox/AP-ellipse", []),
        ("-bbox/APs", []),
        ("bbox_nms/AP-ring", ["TEST.WITH_NMS", "True"]),
        ("-nms_gap", ["TEST.WITH_NMS", "True"]),
        ("tiny_val/bbox/AP", ["DATASETS.TEST", "('tiny_val', 'tiny_train')"]),
        ("-bbox/duplicates_0.3", ["DATASETS.TEST", "('shapes_crowd_val',)"]),
    ],
)
def test_metrics_that_there_are(metric, opts):
    classes = ["MODEL.DEFCN.NUM_CLASSES", "1"] if "crowd" in str(opts) else []
    names = metric_names(load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, *opts, *classes]))
    assert metric.removeprefix("-") in names
    if not classes:
        checked(*BEST, metric, *opts)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["DATASETS.TRAIN", "('tiny_trian',)"], "'tiny_trian'; did you mean 'tiny_train'?"),
        (["DATASETS.TEST", "('tiny_vall',)"], "DATASETS.TEST: .* did you mean 'tiny_val'?"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN names no data set"),
        (["MODEL.DEFCN.NUM_CLASSES", "80"], "is 80, but .*'tiny_train' has 7 classes.* 7$"),
        (["MODEL.META_ARCHITECTURE", "DeFCNN"], "did you mean 'DeFCN'?"),
        (["MODEL.BACKBONE.NAME", "resnet"], "MODEL.BACKBONE.NAME 'resnet' is unknown; one of: "),
        (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS 'nowhere.pth' does not exist"),
        (["--eval-only"], "--eval-only needs weights"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST names no data set"),
        (["SOLVER.OPTIMIZER", "adamw"], r"'adamw' is unknown; .* \(did you mean 'AdamW'\?\)"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0"),
        (["SOLVER.ACCUMULATE", "0"], "SOLVER.ACCUMULATE is 0, but must be at least 1"),
        (["SOLVER.ACCUMULATE", "3"], r"IMS_PER_BATCH is 4, but .* SOLVER.ACCUMULATE \(3\) times"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], "REFERENCE_WORLD_SIZE is 3, but must be 0 or"),
        ([*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "nrom"], "CLIP_TYPE 'nrom' is unknown; one of"),
        (
            [*CLIP, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.0"],
            "CLIP_VALUE is 0.0, but must be above",
        ),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0, but must be at least 1"),
        (["SOLVER.BASE_LR", "-0.1"], "SOLVER.BASE_LR is -0.1"),
        (["INPUT.FORMAT", "BRG"], "INPUT.FORMAT 'BRG' is unknown"),
        (["INPUT.FORMAT", "L"], "MODEL.PIXEL_MEAN has 3 numbers, but INPUT.FORMAT L has 1"),
        ([*BEST, "bbox/AP-elipse"], "no metric 'bbox/AP-elipse'; did you mean 'bbox/AP-ellipse'"),
        ([*BEST, "-bbox/APx"], "SOLVER.CHECKPOINT_BEST: there is no metric 'bbox/APx'; did you"),
        ([*BEST, "bbox_nms/AP"], "there is no metric 'bbox_nms/AP'; did you mean"),
        (["--num-gpus=-1"], "--num-gpus is -1"),
        (["--machine-rank=1"], "--machine-rank is 1"),
    ],
)
def test_what_is_told_before_anything_is_loaded(arguments, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        checked(*arguments)
    assert "\n" not in str(caught.value)


def test_data_without_an_evaluator():
    MetadataCatalog.get("tiny_panoptic").set(evaluator_type="coco_panoptic_seg")
    DatasetCatalog.register("tiny_panoptic", list)
    try:
        with pytest.raises(
            UserError, match="'tiny_panoptic' .* evaluator_type 'coco_panoptic_seg'"
        ):
            checked("DATASETS.TEST", "('tiny_panoptic',)")
    finally:
        DatasetCatalog.remove("tiny_panoptic")
        MetadataCatalog.remove("tiny_panoptic")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["SOLVER.AMP.ENABLED", "True"], "'float16', which needs a CUDA device; set it to 'bfloa"),
        (["--num-machines=2"], "--num-machines is 2, but this machine has no CUDA device"),
    ],
)
def test_what_needs_a_gpu(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(*arguments)


def test_resumed_evaluation_needs_no_weights(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    checked("--eval-only", "--resume", "OUTPUT_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["MODEL.DEFCN.NORM", "GM"], "MODEL.DEFCN.NORM 'GM' is unknown"),
        (["MODEL.DEFCN.NMS_TYPE", "soft"], "MODEL.DEFCN.NMS_TYPE 'soft' is unknown"),
        (["MODEL.DEFCN.MATCHER.POTO.SOLVER", "greedy"], "POTO.SOLVER 'greedy' is unknown"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet", "TEST.WITH_NMS", "True"], "is RetinaNet, which"),
    ],
)
def test_values_that_give_no_model(opts, sentence):
    with pytest.raises(UserError, match=sentence):
        Trainer.build_model(load_config(CONFIG, [*TINY_MODEL, *opts]))


def test_schedule_that_does_not_exist():
    cfg = load_config(CONFIG, [*TINY_MODEL, "SOLVER.LR_SCHEDULER_NAME", "Cosine"])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(UserError, match="'Cosine' with MAX_ITER 4"):
        Trainer.build_lr_scheduler(cfg, optimizer)


@pytest.mark.parametrize("iterations, said", [(40, True), (100, True), (101, False)])
def test_a_warm_up_that_the_training_does_not_outlast(iterations, said, caplog):
    opts = ["SOLVER.MAX_ITER", str(iterations), "SOLVER.WARMUP_ITERS", "100"]
    cfg = load_config(CONFIG, [*TINY_MODEL, *opts])
    Trainer.build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], lr=0.1))
    sentence = f"WARMUP_ITERS is 100, but the training ends after SOLVER.MAX_ITER {iterations}"
    assert (sentence in caplog.text) is said


def test_a_bug_is_not_taken_for_a_value():
    cfg = load_config(CONFIG)
    assert value_at_fault(KeyError("no value of the config"), cfg) is None
    assert value_at_fault(ValueError("mat1 and mat2 cannot be multiplied"), cfg) is None


class TestData:
    """A COCO set on disk, damaged in one way each."""

    @pytest.fixture
    def coco(self, tmp_path):
        shutil.copytree(tiny_sets() / "shapes" / "val", tmp_path / "set")
        name = f"damaged_{tmp_path.name}"
        images, annotations = tmp_path / "set" / "images", tmp_path / "set" / "annotations.json"
        register_coco_instances(name, {}, str(annotations), str(images))
        yield name, images, annotations
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    def load(self, name, *opts):
        return load_records(load_config(CONFIG, opts), [name], filter_empty=False)

    def test_whole(self, coco):
        name, images, _ = coco
        records = self.load(name)
        assert len(records) == len(list(images.iterdir()))

    def test_no_annotations(self, coco, monkeypatch):
        name, _, annotations = coco
        annotations.unlink()
        monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
        with pytest.raises(UserError, match=f"'{name}': '{annotations}' .*DATASETS.*'/data'"):
            self.load(name)

    def test_damaged_annotations(self, coco):
        name, _, annotations = coco
        annotations.write_text(annotations.read_text()[:100])
        with pytest.raises(UserError, match=f"'{name}': damaged annotations"):
            self.load(name)

    def test_no_image_folder(self, coco):
        name, images, _ = coco
        shutil.rmtree(images)
        with pytest.raises(UserError, match=f"'{name}': its image folder '{images}'"):
            self.load(name)

    def test_a_missing_image(self, coco):
        name, images, _ = coco
        (images / "000003.jpg").unlink()
        with pytest.raises(UserError, match=f"1 of 16 .* missing, the first '{images}/000003.jpg'"):
            self.load(name)

    def test_no_images(self, coco):
        name, _, annotations = coco
        empty = {**json.loads(annotations.read_text()), "images": [], "annotations": []}
        annotations.write_text(json.dumps(empty))
        with pytest.raises(UserError, match=f"'{name}': "):
            self.load(name)

    def test_classes_known_only_when_loaded(self, coco):
        name, _, _ = coco
        with pytest.raises(UserError, match="NUM_CLASSES is 3, but .* 7 classes"):
            self.load(name, "MODEL.DEFCN.NUM_CLASSES", "3")


def test_keys_are_all_leaves():
    cfg = load_config(CONFIG)
    keys = list(keys_of(cfg))
    assert len(set(keys)) == len(keys)
    assert {"VERSION", "MODEL.DEFCN.AUX.MATCHER.NAME", "SOLVER.OPTIMIZER"} <= set(keys)
    assert "MODEL.DEFCN" not in keys


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20), st.data())
def test_nearest_of_a_known_name_is_itself(names, data):
    name = data.draw(st.sampled_from(names))
    assert f"did you mean {name!r}?" in did_you_mean(name, names)


def test_nearest_of_nothing():
    assert did_you_mean("x", []) == "there is nothing like it"
    assert did_you_mean("x", ["aaaa", "bbbb"]) == "one of: aaaa, bbbb"


def test_as_user_error_takes_only_its_kinds():
    with pytest.raises(UserError, match="^file x: No such file$"):
        with as_user_error(OSError, "file x: {}"):
            raise FileNotFoundError(errno.ENOENT, "No such file", "x")
    with pytest.raises(ZeroDivisionError):
        with as_user_error(OSError, "file x: {}"):
            raise ZeroDivisionError


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("do this"), "do this"),
        (DatasetError("do that"), "do that"),
        (CheckpointError("take this"), "take this"),
        (FloatingPointError("Loss became infinite\nloss_dict = {}"), "SOLVER.BASE_LR"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "SOLVER.IMS_PER_BATCH"),
        (OSError(errno.ENOSPC, "No space left on device", "x.pth"), "no space left for x.pth"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, error, words):
    @reported
    def command():
        raise error

    assert command() == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert words in output.err and not output.out


def test_interrupt_and_success(capsys):
    @reported
    def interrupted():
        raise KeyboardInterrupt

    assert interrupted() == 130
    assert "interrupted" in capsys.readouterr().err
    assert reported(lambda: None)() == 0
    assert reported(lambda: 3)() == 3


@pytest.mark.parametrize("error", [RuntimeError("bug"), FileNotFoundError(2, "No such file", "x")])
def test_bugs_keep_their_traceback(error):
    assert describe(error) is None

    @reported
    def command():
        raise error

    with pytest.raises(type(error)):
        command()


def test_output_folder_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    """Found out before anything is loaded, not with the first checkpoint."""
    (tmp_path / "file").touch()
    assert run([*KEYS, "OUTPUT_DIR", str(tmp_path / "file" / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"error: OUTPUT_DIR {str(tmp_path / 'file' / 'out')!r} cannot be written"
    )

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system", "x")

    monkeypatch.setattr(command_line.tempfile, "TemporaryFile", read_only)
    assert run([*KEYS, "OUTPUT_DIR", str(tmp_path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "(Read-only file system); set it to a folder of yours" in error
    assert not (tmp_path / "log.txt").exists()
