"""A terminal that shows how far a run is; its full story is in OUTPUT_DIR/log.txt."""

import logging
import sys
import warnings

from detectron2.utils.logger import setup_logger

from ..utils.printable import escape_controls

# Pages that Detectron2 prints before it begins.
_PAGES = (
    "Environment info:",
    "Command line arguments:",
    "Contents of args.config_file",
    "Running with full config:",
    "Model:",
)
# Repeated by the command, in one sentence or as a traceback.
_TOLD = ("Exception during training:", "Exception in writing metrics:")

# Of the run before this one in the same process.
_handlers: dict[logging.Logger, list[logging.Handler]] = {}

_IRRELEVANT = (
    "torch.meshgrid: in an upcoming release",
    ".*pin_memory.*",
)


def setup_logging(output_dir: str, rank: int = 0) -> None:
    """Loggers of fvcore, Detectron2 and this project: to stdout in short, to log.txt in full.

    Must come before Detectron2's ``default_setup``, which then finds its loggers set up. The log of
    an earlier run in this process gets nothing more.
    """
    _leave_earlier_logs()
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message)
    # says, on a machine with nvcc and no GPU, that there is no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    fvcore = setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    own = setup_logger(output_dir, distributed_rank=rank, name="defcn_d2", abbrev_name="defcn")
    detectron2 = setup_logger(output_dir, distributed_rank=rank)
    for log in (fvcore, own, detectron2):
        _handlers[log] = list(log.handlers)
        for handler in log.handlers:
            handler.addFilter(escape_controls)
    for handler in detectron2.handlers:
        if getattr(handler, "stream", None) is sys.stdout:
            handler.addFilter(_is_short)


def _leave_earlier_logs() -> None:
    for log, handlers in _handlers.items():
        for handler in handlers:
            log.removeHandler(handler)
    _handlers.clear()
    setup_logger.cache_clear()  # it gives a folder that it knows no handlers


def _is_short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith((*_PAGES, *_TOLD))
