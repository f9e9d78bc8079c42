"""The command line of ``tools/visualize.py``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config.load import load_config
from ..engine.datasets import check_names
from ..engine.predictor import Predictor
from ..engine.reporting import reported
from ..evaluation.judged import BACKGROUND, DUPLICATE, Judged, load_judged, suppressed
from ..evaluation.score_report import score_report
from ..evaluation.stored_thresholds import AUTO, DEFAULT, confidence_of
from ..utils.command_line import add_model_arguments, input_files, overrides, trained_config
from ..utils.errors import UserError
from ..utils.files import check_outputs
from .assignment import draw_assignment, own_matchers
from .curves import draw_curves, load_runs
from .detections import draw_beside_truth
from .duplicate_pairs import duplicate_pictures
from .example import Example, load_example
from .mistakes import contact_sheet, errors_page, false_positives, missed_objects
from .page import Picture, array_png, figure_png, page_files, pictures_page, save
from .score_page import score_pictures, score_table
from .scores import draw_object_scores, draw_scores
from .training_images import draw_training_images


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw pictures that explain a detector.")
    commands = parser.add_subparsers(dest="command", required=True)

    # Arguments that several commands share.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--output",
        type=Path,
        default=Path("output/visualize"),
        metavar="FOLDER",
        help="%(default)s",
    )
    model = argparse.ArgumentParser(add_help=False)
    add_model_arguments(model)
    model.add_argument("--dataset", default="", metavar="NAME", help="the config's DATASETS.TEST")
    model.add_argument(
        "--image", default="0", help="its place in the data set, from 0, or its file name"
    )
    evaluation = argparse.ArgumentParser(add_help=False)
    evaluation.add_argument(
        "--dataset", default="", metavar="NAME", help="as evaluated; default: the config's"
    )
    add_model_arguments(evaluation, required=False)  # of which the data count alone
    evaluation.add_argument(
        "--results",
        required=True,
        type=Path,
        metavar="FILE",
        help="detections in COCO's results format, such as a run's coco_instances_results.json",
    )

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common, *parents])

    # Commands with their own arguments.
    command = add("assignment", "which locations each matcher makes positive", model)
    command.add_argument("--matchers", nargs="+", metavar="NAME", help="default: the config's")
    command = add("scores", "score maps by level before and after the quality branch", model)
    command.add_argument("--object", type=int, metavar="N", help="its number; else the largest")
    command = add("duplicates", "duplicates, without and with NMS", evaluation)
    command.add_argument("--score", type=float, default=0.3, help="least score drawn, %(default)s")
    command.add_argument("--nms", type=float, default=0.6, help="IoU of the NMS, %(default)s")
    command.add_argument("--images", type=int, default=3, help="images drawn, %(default)s")
    command = add("errors", "confident false positives and missed objects", evaluation)
    command.add_argument("--count", type=int, default=60, help="of each, %(default)s")
    command = add("detections", "detections beside the ground truth")
    add_model_arguments(command)
    command.add_argument("--dataset", default="", metavar="NAME", help="the config's DATASETS.TEST")
    command.add_argument("--count", type=int, default=8, help="of images, %(default)s")
    command.add_argument(
        "--confidence",
        type=confidence_of,
        default=AUTO,
        metavar="SCORE",
        help="least score drawn, as of demo.py",
    )
    add("precision", "precision and recall by score, and the confusion of classes", evaluation)
    command = add("training", "images as a training takes them, augmented, with their objects")
    add_model_arguments(command)
    command.add_argument("--iteration", type=int, default=0, help="of the first, %(default)s")
    command.add_argument("--count", type=int, default=16, help="of images, %(default)s")
    command = add("curves", "metrics of one or several runs")
    command.add_argument("runs", nargs="+", type=Path, help="folders, or metrics.json files")
    return parser.parse_args(arguments)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Draw; a PNG and a page of the command's name appear in ``--output``.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 0, or 1 after a mistake, reported in a sentence.
    """
    args = parse_arguments(arguments)
    _COMMANDS[args.command](args)
    return 0


def _assignment(args: argparse.Namespace) -> None:
    cfg, example = _load(args)
    matchers = args.matchers or own_matchers(cfg)
    figure = draw_assignment(cfg, example, matchers)
    note = (
        "A dot is a location that learns an object, in the colour of the object's class; the "
        "larger, the better the model's own prediction there suits the object. The grid is the "
        "level's, where it is coarse enough to be seen."
    )
    title = f"{', '.join(matchers)} on {example.name}"
    _save(args, "Assignment", [Picture(title, note, figure_png(figure))])


def _scores(args: argparse.Namespace) -> None:
    _, example = _load(args)
    maps = Picture(
        f"Score maps of {example.name}",
        "Every cell is a location. A good end-to-end detector leaves one high score an object.",
        figure_png(draw_scores(example)),
    )
    one = Picture(
        "The highest scores in the box of one object",
        "Without NMS each location with a high score is a detection: all but one are duplicates.",
        figure_png(draw_object_scores(example, args.object)),
    )
    _save(args, "Scores before and after the quality branch", [maps, one])


def _duplicates(args: argparse.Namespace) -> None:
    for name, value in (("--score", args.score), ("--nms", args.nms)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}: give 0 to 1")
    _check_count("--images", args.images, 0)
    dataset, judged, classes = _judged(args)
    pictures = duplicate_pictures(
        judged, suppressed(judged, args.nms), classes, args.score, args.nms, args.images
    )
    _save(args, f"Duplicates on {dataset}", pictures)


def _errors(args: argparse.Namespace) -> None:
    _check_count("--count", args.count, 1)
    dataset, judged, classes = _judged(args)
    false = false_positives(judged, classes, args.count)
    missed = missed_objects(judged, classes, args.count)
    kinds = np.concatenate([one.kinds for one in judged])
    totals = (
        int(np.isin(kinds, (BACKGROUND, DUPLICATE)).sum()),
        sum(int((~one.gt_found & ~one.gt_crowd).sum()) for one in judged),
    )
    title = f"Errors on {dataset}"
    files = {"errors.html": errors_page(title, false, missed, totals).encode()}
    save(args.output, {**files, "errors.png": array_png(contact_sheet(false, missed))})


def _detections(args: argparse.Namespace) -> None:
    _check_count("--count", args.count, 1)
    cfg = trained_config(args)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), "")
    check_names([dataset], "--dataset")
    _check_outputs(args, input_files(args, cfg), dataset)
    predictor = Predictor(cfg, confidence=args.confidence)
    if predictor.confidence is None:
        predictor.confidence = DEFAULT
    picture = Picture(
        "Detections", "", array_png(draw_beside_truth(predictor, dataset, args.count))
    )
    _save(args, f"Detections on {dataset}", [picture])


def _precision(args: argparse.Namespace) -> None:
    dataset, judged, classes = _judged(args)
    report, curves = score_report(judged, classes)
    _save(args, f"Scores on {dataset}", score_pictures(report, curves), score_table(report))


def _training(args: argparse.Namespace) -> None:
    _check_count("--count", args.count, 1)
    cfg = load_config(args.config_file, overrides(args))
    for dataset in cfg.DATASETS.TRAIN:
        _check_outputs(args, input_files(args, cfg), dataset)
    sheet = draw_training_images(cfg, args.iteration, args.count)
    note = "Augmented and mixed as the config says; dashed: extra boxes."
    title = f"Images of a training from iteration {args.iteration} on"
    _save(args, "Images of a training", [Picture(title, note, array_png(sheet))])


def _curves(args: argparse.Namespace) -> None:
    _check_outputs(args, args.runs)
    runs = load_runs(args.runs)
    picture = Picture(", ".join(runs), "From metrics.json.", figure_png(draw_curves(runs)))
    _save(args, "Curves", [picture])


_COMMANDS = {
    "assignment": _assignment,
    "scores": _scores,
    "duplicates": _duplicates,
    "errors": _errors,
    "detections": _detections,
    "precision": _precision,
    "training": _training,
    "curves": _curves,
}


def _load(args: argparse.Namespace) -> tuple[CfgNode, Example]:
    cfg = trained_config(args)
    dataset = args.dataset or next(iter(cfg.DATASETS.TEST), "")
    _check_outputs(args, input_files(args, cfg), dataset)
    return cfg, load_example(cfg, args.dataset, args.image)


def _check_outputs(
    args: argparse.Namespace, inputs: Sequence[str | Path], dataset: str = ""
) -> None:
    """Refuse to write onto files that are read, images of the data set among them."""
    folder = args.output.expanduser()
    written = [folder / f"{args.command}.html", *folder.glob(f"{args.command}*.png")]
    if dataset in DatasetCatalog.list() and any(path.exists() for path in written):
        try:
            inputs = [*inputs, *(record["file_name"] for record in DatasetCatalog.get(dataset))]
        except FileNotFoundError:
            pass  # which the command says when it reads the set
    check_outputs(written, inputs, "--output")


def _evaluated(args: argparse.Namespace) -> str:
    """The data set of ``--dataset``, else that of the config, whose own data are registered."""
    opts = overrides(args)
    if not (args.dataset or args.config_file or opts):
        raise UserError(
            "there is no data set: give --dataset NAME or, for own data, the run's config.yaml by "
            "--config-file, or DATASETS.REGISTER.VAL.ANNOTATIONS and IMAGES at the end"
        )
    cfg = load_config(args.config_file, opts)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise UserError(
            "DATASETS.TEST is empty: give --dataset NAME, or DATASETS.REGISTER.VAL.ANNOTATIONS and "
            "IMAGES at the end"
        )
    return args.dataset or cfg.DATASETS.TEST[0]


def _judged(args: argparse.Namespace) -> tuple[str, list[Judged], list[str]]:
    """The data set, its images judged by the detections of ``--results``, and its classes."""
    dataset = _evaluated(args)
    check_names([dataset], "--dataset")
    _check_outputs(args, [args.results], dataset)
    return dataset, *load_judged(dataset, args.results)


def _check_count(option: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{option} is {value}: give {least} or more")


def _save(
    args: argparse.Namespace, title: str, pictures: Sequence[Picture], head: str = ""
) -> None:
    """The page, and its pictures, by the command's name."""
    name = args.command
    save(args.output, page_files(name, pictures_page(title, "", pictures, head), pictures))
