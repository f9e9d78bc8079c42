"""The whole detector: training on anything that is an image, and the way from cells to boxes."""

import copy
import io
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from helpers import make_priors, random_inputs, tiny_cfg
from torch import nn

from defcn_d2.config.rules import ConfigError
from defcn_d2.modeling.criterion import SummedCriterion
from defcn_d2.modeling.loss.functional import giou_loss
from defcn_d2.structures import LossSum, Predictions, Priors

NUM_CLASSES = 3
ANCHORS = (
    *("MODEL.DEFCN.PRIORS", "anchors", "MODEL.DEFCN.MATCHER.NAME", "Anchor"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
    *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]),
)
RESNET18 = (
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "FrozenBN"),
)
LOSS_VARIANTS = [
    pytest.param((), id="filter and auxiliary loss"),
    pytest.param(
        ("MODEL.DEFCN.QUALITY_BRANCH", "centerness", "MODEL.DEFCN.MATCHER.NAME", "FCOS"),
        id="centerness",
    ),
    pytest.param(("MODEL.DEFCN.QUALITY_BRANCH", "none", *ANCHORS), id="anchors"),
]


def small_cfg(*opts: object) -> CfgNode:
    return tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES, *opts)


def small_model(*opts: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(small_cfg(*opts))


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Training whose images do not see each other, with outputs that are not all alike."""
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    model.train()
    model.backbone.eval()
    return model


def assert_same_detections(actual: Instances, expected: Instances) -> None:
    tolerances = {"rtol": 0, "atol": 1e-3}  # in pixels, of coordinates of several hundred
    torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, **tolerances)
    torch.testing.assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-6)
    assert torch.equal(actual.pred_classes, expected.pred_classes)


def gradients(model: nn.Module, inputs: list[dict]) -> tuple[dict, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    losses = model(inputs)
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_losses_decrease_on_four_images() -> None:
    model = small_model()
    inputs = random_inputs([(64, 64)] * 4, [1, 2, 3, 1], NUM_CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        losses = model(inputs)
        assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_cls_aux"}
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in history[0]:
        first, last = (sum(h[name] for h in part) for part in (history[:5], history[-5:]))
        assert last < 0.8 * first, name


def test_batch_is_the_weighted_mean_of_its_images() -> None:
    model = without_batch_norm(small_model("MODEL.DEFCN.AUX.ENABLED", False))
    inputs = random_inputs([(64, 96)] * 3, [2, 5, 1], NUM_CLASSES)
    losses = model(inputs)
    images, counts = [], []
    for x in inputs:
        images.append(model([x]))
        counts.append(model.criteria[0].metrics["num_foreground"].item())
    for name, loss in losses.items():
        expected = sum(n * image[name] for n, image in zip(counts, images, strict=True))
        torch.testing.assert_close(loss, expected / sum(counts), rtol=1e-5, atol=0)


def test_order_of_ground_truths_does_not_matter() -> None:
    model = without_batch_norm(small_model())
    inputs = random_inputs([(64, 64)], [7], NUM_CLASSES)
    losses = model(inputs)
    inputs[0]["instances"] = inputs[0]["instances"][torch.tensor([6, 2, 0, 5, 3, 1, 4])]
    for name, loss in model(inputs).items():
        torch.testing.assert_close(loss, losses[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("opts", LOSS_VARIANTS)
def test_images_without_ground_truth(opts: tuple) -> None:
    model = small_model(*opts)
    sizes = [(64, 64), (64, 64)]
    _, usual = gradients(model, random_inputs(sizes, [3, 2], NUM_CLASSES))
    assert usual.keys() == {name for name, _ in model.named_parameters()}
    for counts in ([0, 3], [0, 0]):
        losses, actual = gradients(model, random_inputs(sizes, counts, NUM_CLASSES))
        assert all(loss.isfinite() for loss in losses.values())
        assert actual.keys() == usual.keys()
        assert all(gradient.isfinite().all() for gradient in actual.values())
        if counts == [0, 0]:
            assert losses["loss_box_reg"] == 0
            assert losses["loss_cls"] > 0
            assert losses.get("loss_centerness", 0) == 0


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_number_of_channels_is_that_of_the_pixel_mean(channels: int) -> None:
    opts = ("MODEL.PIXEL_MEAN", [100.0] * channels, "MODEL.PIXEL_STD", [50.0] * channels)
    model = small_model(*opts)
    inputs = random_inputs([(64, 64), (40, 64)], [1, 2], NUM_CLASSES, channels=channels)
    assert all(loss.isfinite() for loss in model(inputs).values())
    assert len(model.eval()(inputs)) == 2


@pytest.mark.parametrize("num_classes", [1, 2, 81])
def test_any_number_of_classes(num_classes: int) -> None:
    model = build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", num_classes))
    inputs = random_inputs([(64, 64)] * 2, [4, 4], num_classes)
    losses, _ = gradients(model, inputs)
    assert all(loss.isfinite() for loss in losses.values())
    model.eval()
    model.score_thresh = 0.0
    classes = torch.cat([x["instances"].pred_classes for x in model(inputs)])
    assert classes.min() >= 0
    assert classes.max() < num_classes


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (20, 30), (33, 65)])
def test_images_smaller_than_a_cell_of_the_coarsest_level(size: tuple[int, int]) -> None:
    model = small_model()
    inputs = random_inputs([size, (40, 24)], [1, 2], NUM_CLASSES)
    losses, actual = gradients(model, inputs)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in actual.values())
    model.eval()
    model.score_thresh = 0.0
    boxes = model(inputs[:1])[0]["instances"].pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= size[1]).all()
    assert (boxes[:, 3] <= size[0]).all()


@pytest.mark.parametrize(
    ("backbone", "levels", "opts"),
    [
        (
            "build_resnet_fpn_backbone",
            {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64},
            ("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        ),
        ("build_retinanet_resnet_fpn_backbone", {"p3": 8, "p5": 32, "p7": 128}, ()),
        ("build_defcn_resnet_fpn_backbone", {"p4": 16}, ()),
    ],
)
def test_other_backbones_and_levels(backbone: str, levels: dict, opts: tuple) -> None:
    model = small_model(
        *("MODEL.BACKBONE.NAME", backbone, "MODEL.DEFCN.IN_FEATURES", list(levels)),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *RESNET18,
        *opts,
    )
    assert model.head.strides == list(levels.values())
    losses, _ = gradients(model, random_inputs([(64, 64)], [3], NUM_CLASSES))
    assert all(loss.isfinite() for loss in losses.values())
    priors, _ = model.predict(torch.zeros(1, 3, 96, 128))
    expected = make_priors(96, 128, strides=tuple(levels.values()))
    assert torch.equal(priors.boxes, expected.boxes)


def test_from_cells_of_the_levels_to_locations() -> None:
    """Row-major within a level, finest first: logits and boxes stand where their cells are."""
    model = without_batch_norm(small_model())
    images = torch.randn(2, 3, 96, 160)
    priors, predictions = model.predict(images)
    expected = make_priors(96, 160)
    assert torch.equal(priors.boxes, expected.boxes)
    assert torch.equal(priors.strides, expected.strides)
    assert priors.level_sizes == expected.level_sizes

    _, features = model.features(images)
    maps = model.head.maps(*model.head.towers(features))
    cls_logits, ltrb, quality = maps["cls_logits"], maps["boxes"], maps["quality_logits"]
    r = 0
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        _, _, rows, columns = cls_logits[level].shape
        for i in range(rows):
            for j in range(columns):
                assert torch.equal(predictions.cls_logits[:, r], cls_logits[level][:, :, i, j])
                assert torch.equal(predictions.quality_logits[:, r], quality[level][:, 0, i, j])
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                left, top, right, bottom = ltrb[level][:, :, i, j].unbind(dim=1)
                box = torch.stack([x - left, y - top, x + right, y + bottom], dim=1)
                torch.testing.assert_close(predictions.boxes[:, r].float(), box)
                r += 1
    assert r == len(priors)


def test_from_cells_to_anchors() -> None:
    model = without_batch_norm(small_model(*ANCHORS, "MODEL.DEFCN.QUALITY_BRANCH", "none"))
    images = torch.randn(2, 3, 64, 96)
    priors, predictions = model.predict(images)
    points = make_priors(64, 96)
    assert torch.equal(priors.centers, points.centers)
    assert torch.equal(priors.strides, points.strides)
    sides = priors.boxes[:, 2:] - priors.boxes[:, :2]
    assert torch.equal(sides, (4 * points.strides)[:, None].expand(-1, 2))

    _, features = model.features(images)
    deltas = model.head.maps(*model.head.towers(features))["boxes"]
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    deltas = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in deltas], dim=1)
    for i in range(2):
        expected = transform.apply_deltas(deltas[i], priors.boxes)
        torch.testing.assert_close(predictions.boxes[i], expected)


def test_images_are_normalised_and_padded_at_the_bottom_and_the_right() -> None:
    model = small_model("MODEL.PIXEL_MEAN", [10.0, 20.0, 30.0], "MODEL.PIXEL_STD", [1.0, 2.0, 4.0])
    inputs = random_inputs([(40, 33), (20, 70)], [0, 0], NUM_CLASSES)
    images = model.preprocess_image(inputs)
    assert images.tensor.shape == (2, 3, 64, 96)
    assert [tuple(size) for size in images.image_sizes] == [(40, 33), (20, 70)]
    for i, x in enumerate(inputs):
        _, height, width = x["image"].shape
        for c, (mean, std) in enumerate([(10, 1), (20, 2), (30, 4)]):
            expected = torch.zeros(64, 96)
            expected[:height, :width] = (x["image"][c].float() - mean) / std
            torch.testing.assert_close(images.tensor[i, c], expected)


def test_padding_is_an_image_of_the_mean_colour() -> None:
    model = without_batch_norm(small_model()).eval()
    model.score_thresh = 0.0
    (x,) = random_inputs([(40, 50)], [0], NUM_CLASSES)
    padded = model.pixel_mean.expand(-1, 64, 64).clone()
    padded[:, :40, :50] = x["image"]
    small, large = model([x])[0], model([{"image": padded, "height": 64, "width": 64}])[0]
    assert len(small["instances"]) > 10
    # The same detections, except those beyond the image and the clipping.
    boxes = large["instances"].pred_boxes.tensor.clone()
    boxes[:, 0::2].clamp_(0, 50)
    boxes[:, 1::2].clamp_(0, 40)
    seen = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    expected = large["instances"][seen]
    expected.pred_boxes.tensor = boxes[seen]
    assert_same_detections(small["instances"], expected)


def test_neighbours_in_a_batch_of_one_size_do_not_matter() -> None:
    model = without_batch_norm(small_model()).eval()
    model.score_thresh = 0.0
    inputs = random_inputs([(64, 96)] * 2, [0, 0], NUM_CLASSES)
    together = model(inputs)
    for x, expected in zip(inputs, together, strict=True):
        (alone,) = model([x])
        assert len(alone["instances"]) > 10
        assert_same_detections(alone["instances"], expected["instances"])


def test_detections_in_the_size_of_the_output() -> None:
    model = without_batch_norm(small_model()).eval()
    model.score_thresh = 0.0
    (x,) = random_inputs([(64, 96)], [0], NUM_CLASSES)
    boxes = model([x])[0]["instances"].pred_boxes.tensor
    (larger,) = model([{**x, "height": 128, "width": 288}])
    assert larger["instances"].image_size == (128, 288)
    expected = boxes * torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(larger["instances"].pred_boxes.tensor, expected)
    (unknown,) = model([{"image": x["image"]}])
    assert unknown["instances"].image_size == (64, 96)


def test_memory_format_changes_nothing_but_the_memory() -> None:
    """All maps of backbone and head, in training and in evaluation, are channels_last."""
    wide = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 16)  # see memory_layout.py
    model = without_batch_norm(small_model(*wide))
    other = without_batch_norm(small_model(*wide, "MODEL.DEFCN.CHANNELS_LAST", True))
    other.load_state_dict(model.state_dict())
    assert other.head.cls_score.weight.is_contiguous(memory_format=torch.channels_last)
    formats: list[bool] = []

    def look(module: nn.Module, inputs: tuple, output: object) -> None:
        for x in (*inputs, output):
            if isinstance(x, torch.Tensor) and min(x.shape[1:]) > 1:  # else it is both
                formats.append(x.is_contiguous(memory_format=torch.channels_last))
                assert formats[-1] != x.is_contiguous()

    for part in (other.backbone, other.head):
        for module in part.modules():
            module.register_forward_hook(look)
    inputs = random_inputs([(64, 96)] * 2, [3, 2], NUM_CLASSES)
    losses, expected = other(inputs), model(inputs)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=0)
    assert len(formats) > 50 and all(formats)
    formats.clear()
    for network in (other, model):
        network.eval()
        network.score_thresh = 0.0
    for found, wanted in zip(other(inputs), model(inputs)):
        assert_same_detections(found["instances"], wanted["instances"])
    assert len(formats) > 50 and all(formats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("opts", LOSS_VARIANTS)
def test_matching_and_losses_are_in_float32_under_autocast(opts: tuple, dtype: torch.dtype) -> None:
    model = without_batch_norm(small_model(*opts))
    inputs = random_inputs([(64, 64)] * 2, [3, 2], NUM_CLASSES)
    expected = model(inputs)
    seen: list[torch.dtype] = []

    class Spy(SummedCriterion):
        """A criterion of another project, which multiplies matrices."""

        def loss_sums(self, priors: Priors, predictions: Predictions, gt: list) -> dict:
            tensors = [predictions.cls_logits, predictions.boxes, predictions.fused()]
            tensors += [] if predictions.quality_logits is None else [predictions.quality_logits]
            products = [x @ x.transpose(-1, -2) for x in tensors[:2]]
            seen.extend(x.dtype for x in [*tensors, *products, priors.boxes, priors.strides])
            return {"loss_spy": LossSum(0 * predictions.boxes.sum(), torch.tensor(1.0))}

    model.criteria.append(Spy())
    convolved: list[torch.dtype] = []
    model.head.cls_score.register_forward_hook(lambda *args: convolved.append(args[2].dtype))
    with torch.autocast("cpu", dtype=dtype):
        losses = model(inputs)
    assert set(convolved) == {dtype}
    assert set(seen) <= {torch.float32, torch.float64} and len(seen) >= 7
    losses.pop("loss_spy")
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.5)  # other assignments
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)

    model.eval()
    model.score_thresh = 0.0
    with torch.autocast("cpu", dtype=dtype):
        detections = model(inputs)[0]["instances"]
    assert detections.scores.dtype == detections.pred_boxes.tensor.dtype == torch.float32


def test_figures_of_a_step() -> None:
    """Scalars that stay on the device, without a graph, of every criterion."""
    model = small_model()
    assert model.figures == {}
    model(random_inputs([(64, 64)] * 2, [3, 0], NUM_CLASSES))
    figures = model.figures
    assert figures["num_foreground"] + figures["num_unmatched_gt"] == 1.5
    assert figures.keys() >= {"num_foreground_aux", "num_unmatched_gt_aux"}
    assert all(x.shape == () and not x.requires_grad for x in figures.values())


def test_state_dict_holds_parameters_and_statistics_alone() -> None:
    model = small_model()
    derived = ("pixel_", "prior_generator", "criteria")
    assert not [name for name in model.state_dict() if name.startswith(derived)]
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "head"}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("MODEL.DEFCN.IN_FEATURES", ["p3", "p9"]),
            r"IN_FEATURES \['p9'\] are not given by the backbone .*; it has: p3, p4, p5, p6, p7",
        ),
        (("MODEL.DEFCN.NMS_TYPE", "soft"), "NMS_TYPE 'soft' is unknown; one of: class_wise, none"),
        (("MODEL.DEFCN.PRIORS", "lines"), "PRIORS 'lines' is unknown; one of: anchors, points"),
        (
            (*ANCHORS, "MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64], *[[32]] * 4]),
            r"SIZES \[\[32, 64\], .* is not one list of anchors a level, all as long, on 5 levels",
        ),
        (
            (*ANCHORS, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0]] * 5),
            "is not one list of anchors a level, .* and one list of ratios",
        ),
        (
            (*ANCHORS, "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
            "is not one list of anchors a level, all as long, on 5 levels",
        ),
    ],
)
def test_errors_of_the_config(opts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(*opts)


def test_feature_maps_of_different_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"p{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in range(3, 8)}
    monkeypatch.setattr(FPN, "output_shape", lambda self: shapes)
    message = r"have different numbers of channels \(\[24, 32, 40, 48, 56\]\); take the levels of"
    with pytest.raises(ConfigError, match=message):
        small_model()


def test_errors_of_the_input() -> None:
    model = small_model()
    (x,) = random_inputs([(64, 64)], [1], NUM_CLASSES, channels=4)
    with pytest.raises(ValueError, match=r"shape \(4, 64, 64\), expected \(3, H, W\) as MODEL.PIX"):
        model([x])
    with pytest.raises(ValueError, match=r"shape \(64, 64\), expected \(3, H, W\)"):
        model([{**x, "image": torch.zeros(64, 64)}])
    with pytest.raises(ValueError, match="training needs the key 'instances' in every input"):
        model([*random_inputs([(64, 64)], [1], NUM_CLASSES), {"image": torch.zeros(3, 64, 64)}])


def test_tiny_boxes_far_from_the_origin_keep_their_digits() -> None:
    """GIoU of decoded boxes equals GIoU of the distances to their sides, for 3 px at 1,300 px."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).train()
    centers = 8 * torch.randint(160, (500, 2)) + 4.0
    priors = Priors(torch.cat([centers - 4, centers + 4], 1), torch.full((500,), 8.0), [500])
    predicted, truth = 3 * torch.rand(2, 500, 4)
    boxes = model.head.decode(predicted[None], priors)[0]
    gt_boxes = torch.cat([centers - truth[:, :2], centers + truth[:, 2:]], 1)

    exact = torch.cat([centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers], 1).double()
    low, high = torch.minimum(predicted, exact), torch.maximum(predicted, exact)
    inter = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    hull = (high[:, 0] + high[:, 2]) * (high[:, 1] + high[:, 3])
    areas = [(x[:, 0] + x[:, 2]) * (x[:, 1] + x[:, 3]) for x in (predicted.double(), exact)]
    union = areas[0] + areas[1] - inter
    expected = 1 - (inter / union - (hull - union) / hull)
    torch.testing.assert_close(giou_loss(boxes, gt_boxes).double(), expected, rtol=2e-6, atol=1e-7)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def detect(model: nn.Module, inputs: list[dict]) -> list[dict]:
    with torch.no_grad():
        return model(inputs)


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("MODEL.DEFCN.CHANNELS_LAST", True),
        ("MODEL.DEFCN.COMPILE.ENABLED", True, "MODEL.DEFCN.COMPILE.BACKEND", "eager"),
    ],
)
def test_models_that_are_copied_detect_the_same(opts: tuple) -> None:
    model = small_model("MODEL.DEFCN.TOPK_ONLY_TEST", True, *opts).eval()
    inputs = random_inputs([(64, 64), (50, 70)], [1, 2], NUM_CLASSES)
    expected = detect(model, inputs)
    copies = [saved_and_loaded(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for found in (detect(other, inputs) for other in copies):
        for one, other in zip(found, expected, strict=True):
            assert len(one["instances"]) > 0
            assert_same_detections(one["instances"], other["instances"])
    assert all(other.memory_format == model.memory_format for other in copies)


def test_models_go_to_other_processes() -> None:
    model = small_model("MODEL.DEFCN.TOPK_ONLY_TEST", True).eval()
    inputs = random_inputs([(64, 64)], [1], NUM_CLASSES)
    (expected,) = detect(model, inputs)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        (found,) = pool.submit(detect, model, inputs).result(timeout=300)
    assert_same_detections(found["instances"], expected["instances"])
