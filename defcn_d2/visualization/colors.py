"""One colour a class, the same in every picture."""

import colorsys

# Told apart on any ground, also by most people who are colour-blind; the first are used most.
_FIRST = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c8c8", "#f032e6", "#9a8a00"),
    *("#00755e", "#a05000", "#800000", "#808000", "#000075", "#e377c2", "#5f9ea0", "#7f7f7f"),
)
_GOLDEN = 0.61803398875  # share of the circle of hues between neighbours, none of which meet soon


def class_color(number: int) -> str:
    """The colour of class ``number`` >= 0, as "#rrggbb", whatever the other classes."""
    if number < len(_FIRST):
        return _FIRST[number]
    hue, ring = number * _GOLDEN % 1, number % 3
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.65, 0.8)[ring], (0.75, 0.9, 0.55)[ring])
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
