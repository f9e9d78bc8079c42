"""OpenCV's window, where there is one."""

import os
import sys

import cv2
import numpy as np

from ..utils.errors import UserError

_NAME = "detections"
_ESCAPE = 27


class Window:
    """A window that shows pictures."""

    def __init__(self) -> None:
        """
        Raises:
            UserError: there is no display, or OpenCV is built without windows.
        """
        # without a display OpenCV's window library does not raise, it ends the process
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
            raise UserError("there is no display to show drawings on: save them with --output")
        try:
            cv2.namedWindow(_NAME, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise UserError(
                "this OpenCV is built without windows (opencv-python-headless): save drawings "
                "with --output, or pip install opencv-python"
            ) from error

    def show(self, image: np.ndarray, wait: bool) -> bool:
        """Show a BGR image, with ``wait`` until a key is pressed; False if that was Escape."""
        cv2.imshow(_NAME, image)
        return cv2.waitKey(0 if wait else 1) != _ESCAPE
