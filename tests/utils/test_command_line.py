"""``defcn_d2.utils.command_line``: config, weights and overrides, alike for all four commands."""

from __future__ import annotations

import argparse

import pytest
from detectron2.engine import default_argument_parser

from defcn_d2.config.load import load_config
from defcn_d2.demo import demo_command
from defcn_d2.export import export_command
from defcn_d2.utils.command_line import add_weights, overrides, trained_config
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization import visualize_command


def parse_training(arguments: list[str]) -> argparse.Namespace:
    parser = default_argument_parser()
    add_weights(parser)
    return parser.parse_args(arguments)


COMMANDS = {
    "train": (parse_training, []),
    "demo": (demo_command.parse_arguments, ["--output", "drawn", "--input", "a.jpg", "b.jpg"]),
    "export": (export_command.parse_arguments, ["--format", "onnx", "--output", "x.onnx"]),
    "visualize": (visualize_command.parse_arguments, ["scores", "--image", "3"]),
}


def parsed(command: str, *model: str) -> argparse.Namespace:
    parse, own = COMMANDS[command]
    first = own[:1] if command == "visualize" else []
    return parse([*first, "--config-file", "shapes/POTO", *own[len(first) :], *model])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "model",
    [
        ["--weights", "w.pth", "SEED", "3"],
        ["--weights", "w.pth", "--opts", "SEED", "3"],
        ["--opts", "SEED", "3", "MODEL.WEIGHTS", "w.pth"],
        ["--weights", "w.pth", "SEED", "3", "MODEL.WEIGHTS", "other.pth"],
    ],
)
def test_all_commands_take_a_model_alike(command: str, model: list[str]) -> None:
    args = parsed(command, *model)
    cfg = load_config(args.config_file, overrides(args))
    assert cfg.MODEL.WEIGHTS == "w.pth" and cfg.SEED == 3
    if command != "train":
        assert trained_config(args) == cfg


@pytest.mark.parametrize("command", ["demo", "export", "visualize"])
def test_what_needs_a_trained_model_says_so(command: str) -> None:
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty: give a trained model, --weights"):
        trained_config(parsed(command))


def test_paths_of_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = load_config("shapes/POTO", ["OUTPUT_DIR", "~/run", "MODEL.WEIGHTS", "~/w.pth"])
    assert cfg.OUTPUT_DIR == str(tmp_path / "run")
    assert cfg.MODEL.WEIGHTS == str(tmp_path / "w.pth")
    (tmp_path / "c.yaml").write_text("OUTPUT_DIR: ~/run\n")
    assert load_config("~/c.yaml").OUTPUT_DIR == str(tmp_path / "run")
    address = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert load_config("shapes/POTO", ["MODEL.WEIGHTS", address]).MODEL.WEIGHTS == address
