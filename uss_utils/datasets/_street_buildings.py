"""Buildings of a street: facades in front view and houses in perspective."""

import numpy as np

from uss_utils.datasets._paint import RGB, Dice, Painter, Patch, fraction, mix, scaled
from uss_utils.datasets._street_objects import BUILDING, GLASS

# Focal length in canvas sides: turns scale into depth.
FOCAL = 0.9


def _plaster(dice: Dice) -> RGB:
    """Colour of a facade: any hue, pale, dull, strong or dark."""
    saturation, value = dice.pick(
        (
            ((0.0, 0.2), (0.6, 0.95)),
            ((0.1, 0.4), (0.35, 0.75)),
            ((0.4, 0.75), (0.4, 0.85)),
            ((0.1, 0.6), (0.18, 0.4)),
        )
    )
    return dice.colour((0, 1), saturation, value)


class _Windows:
    """A pattern of windows, drawn for any facade coordinates.

    Args:
        dice: source of the choices.
        wall: colour of the facade.
    """

    def __init__(self, dice: Dice, wall: RGB):
        self.kind = dice.pick(("grid", "grid", "grid", "band", "strip", "curtain"))
        across, up = {
            "grid": (dice.u(0.2, 0.32), dice.u(0.2, 0.32)),
            "band": (0.0, dice.u(0.25, 0.32)),
            "strip": (dice.u(0.2, 0.3), 0.0),
            "curtain": (0.08, 0.09),
        }[self.kind]
        self.margin = (across, up)
        self.lit = dice.u(0.0, 0.35)
        self.frame = dice.chance(0.4)
        self.cells = (dice.grid(16, 16) + 1) / 2
        self.glass = dice.colour(*GLASS)
        if max(wall) < 0.42 or dice.chance(0.2):  # dark walls have bright windows
            self.glass = dice.colour((0, 1), (0.0, 0.4), (0.6, 0.95))
        self.lamp = dice.colour((0.08, 0.16), (0.2, 0.6), (0.85, 1.0))
        self.sill = mix(wall, (1.0, 1.0, 1.0), 0.5)

    def paint(self, patch: Patch, across, up, inside, fade=None):
        """Paint windows; one unit of the coordinates is one window.

        Args:
            patch: where.
            across: horizontal facade coordinate, (1, w).
            up: vertical facade coordinate, (h, 1) or (h, w).
            inside: where windows may be, broadcastable to (h, w).
            fade: shade factor, broadcastable to (h, w), or None.
        """
        column, floor = np.floor(across), np.floor(up)
        left, low = across - column, up - floor
        a, b = self.margin
        if self.frame and self.kind == "grid":
            rim = (np.abs(left - 0.5) < 0.57 - a) & (np.abs(low - 0.5) < 0.57 - b)
            patch.fill(rim & inside, self.sill, fade)
        pane = (np.abs(left - 0.5) < 0.5 - a) & (np.abs(low - 0.5) < 0.5 - b) & inside
        rows = floor.astype(np.intp) % 16
        cells = self.cells[rows, column.astype(np.intp) % 16]
        shade = 0.75 + 0.5 * cells
        patch.fill(pane, self.glass, shade if fade is None else shade * fade)
        patch.fill(pane & (cells < self.lit), self.lamp)


def facade(
    painter: Painter,
    dice: Dice,
    left: float,
    top: float,
    right: float,
    bottom: float,
    haze: RGB,
):
    """A building in front view, with a visible roofline.

    Args:
        painter: where to paint.
        dice: source of the choices.
        left: position of the left edge.
        top: position of the roofline.
        right: position of the right edge.
        bottom: position of the ground.
        haze: colour that distant buildings fade to.
    """
    wall = mix(_plaster(dice), haze, dice.u(0.0, 0.25))
    windows = _Windows(dice, wall)
    pitch = (dice.u(0.022, 0.04), dice.u(0.024, 0.042))
    roof = scaled(mix(wall, dice.colour(value=(0.2, 0.5)), dice.u(0.3, 1.0)), 0.75)
    edge, offset = dice.u(0.012, 0.022), (dice.u(), dice.u())
    gable = dice.u(0.04, 0.09) if dice.chance(0.3) and top > 0.15 else 0.0
    chimney = dice.u(0.15, 0.85) if dice.chance(0.35) else None
    shop = dice.colour() if dice.chance(0.4) else None
    lit_side = dice.u(0.75, 1.0)
    patch = painter.patch(left, top - gable - 0.03, right, bottom + 0.03)
    if patch is None:
        return
    across = (patch.x - left) / np.float32(right - left)
    if chimney is not None:
        pipe = np.abs(across - np.float32(chimney)) < 0.05
        high = patch.y > top - gable - 0.025
        patch.fill(pipe & high & (patch.y < top + 0.01), roof, 0.8, BUILDING)
    body = patch.y >= top
    shade = 1 + 0.05 * patch.texture("fine", offset)
    shade *= 1 - (1 - lit_side) * across
    patch.fill(body, wall, shade, BUILDING)
    if gable:
        ridge = top - gable * (1 - np.abs(across - 0.5) * 2)
        tiles = 1 - 0.22 * (fraction((patch.y - top) * 90) < 0.4)
        patch.fill((patch.y > ridge) & ~body, roof, tiles, BUILDING)
    columns = max(round((right - left) / pitch[0]), 2)
    inside = (patch.y > top + edge) & (patch.y < bottom - 0.004)
    inside = inside & (np.abs(across - 0.5) < 0.475)
    up = (patch.y - (top + edge)) / np.float32(pitch[1])
    windows.paint(patch, across * columns, up, inside)
    patch.fill((patch.y < top + edge * 0.8) & body, scaled(roof, 0.8))
    if shop is not None:
        street = patch.y > bottom - 0.03
        patch.fill(street, shop, 1 - 0.4 * (fraction(across * columns) < 0.3))


def house(
    painter: Painter, dice: Dice, view, edges: list[float], lateral: float, tall: float
):
    """A house along the street whose front runs towards the vanishing point.

    Args:
        painter: where to paint.
        dice: source of the choices.
        view: the camera (``horizon``, ``vanish`` and ``height`` are used).
        edges: horizontal positions of both ends.
        lateral: of the wall, metres to the right of the camera.
        tall: height of the house, metres.
    """
    wall = _plaster(dice)
    windows = _Windows(dice, wall)
    pitch, offset = dice.u(2.0, 3.2), (dice.u(), dice.u())
    roof, door = dice.colour(value=(0.15, 0.4)), dice.colour(value=(0.15, 0.5))
    light = dice.u(0.7, 1.0)
    scale_max = max(abs(edge - view.vanish) for edge in edges) / abs(lateral)
    top = view.horizon - (tall - view.height) * scale_max
    patch = painter.patch(
        edges[0], top, edges[1], view.horizon + view.height * scale_max
    )
    if patch is None:
        return
    scale = (patch.x - view.vanish) / np.float32(lateral)
    up = (view.horizon - patch.y) / scale + np.float32(view.height)
    along = np.float32(FOCAL) / (scale * np.float32(pitch))
    body = (up > 0) & (up < tall)
    shade = light * (1 + 0.05 * patch.texture("fine", offset))
    patch.fill(body, wall, shade, BUILDING)
    inside = (up > 3.0) & (up < tall - 0.5)
    windows.paint(patch, along, up / 3, inside, np.float32(light))
    street = body & (up < 2.3)
    doors = street & (np.abs(fraction(along / 2) - 0.5) < 0.17)
    patch.fill(doors, door, light)
    patch.fill(body & (up < 0.5), scaled(wall, 0.65 * light))
    patch.fill(body & (up > tall - 0.45), roof, light)
