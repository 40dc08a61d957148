"""The named characters of the second miniature: vector figures of a body, a crest, colours and an emblem, in poses.

A character is an entry of the concept list: name, figure (a key of FIGURES), crest (of CRESTS), emblem (of EMBLEMS) and
colours (body, limbs, emblem). All of that is the same in every pose; a pose moves limbs, leans, lifts and looks aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resurgence.config.fields import ConfigError, known

FRAME = "-12 -17 152 152"  # view box: the figure of 128 units, with room for lifted and leaning ones
OUTLINE = "#2b2533"
COLOURS = ("body", "limbs", "emblem")
Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """Angles in degrees: of limbs from straight down, outwards; of the whole figure, clockwise."""

    arms: Point  # left and right in the picture
    legs: Point = (8, 8)
    lean: float = 0
    lift: float = 0  # above the ground, in units of the frame
    look: Point = (0, 0)  # shift of the pupils, -1 to 1
    laughs: bool = False


POSES: Mapping[str, Pose] = {
    "standing": Pose(arms=(25, 25)),
    "waving": Pose(arms=(25, 150), look=(0.5, -0.5)),
    "cheering": Pose(arms=(150, 150), laughs=True),
    "walking": Pose(arms=(50, 10), legs=(32, 4), lean=-4, look=(-1, 0)),
    "running": Pose(arms=(75, 60), legs=(55, 30), lean=14, lift=3, look=(1, 0)),
    "jumping": Pose(arms=(120, 120), legs=(40, 40), lift=10, laughs=True),
    "pointing": Pose(arms=(92, 20), look=(-1, 0)),
    "shrugging": Pose(arms=(70, 70), lean=3, look=(0, -1)),
    "bowing": Pose(arms=(10, 60), lean=18, look=(0.6, 0.8)),
    "dancing": Pose(arms=(140, 60), legs=(4, 48), lean=-14, laughs=True),
    "leaning": Pose(arms=(40, 100), legs=(2, 16), lean=-10, look=(0.4, 0.6)),
    "marching": Pose(arms=(110, 15), legs=(6, 60), lean=4, look=(0.8, 0)),
}

FIGURES: Mapping[str, str] = {  # path of the body around (64, 62), shoulders near y = 62, hips at y = 92
    "round": "M64 26a36 36 0 1 1 0 72a36 36 0 1 1 0-72z",
    "square": "M40 28h48q9 0 9 9v50q0 9-9 9h-48q-9 0-9-9v-50q0-9 9-9z",
    "pear": "M64 24c16 0 20 14 22 28c2 12 14 18 14 30c0 12-14 16-36 16s-36-4-36-16c0-12 12-18 14-30c2-14 6-28 22-28z",
    "tall": "M64 16c15 0 23 11 23 25v38c0 13-8 19-23 19s-23-6-23-19v-38c0-14 8-25 23-25z",
    "diamond": "M64 20q5 0 9 5l27 32q5 6 0 12l-24 26q-5 4-12 4t-12-4l-24-26q-5-6 0-12l27-32q4-5 9-5z",
}
TOPS: Mapping[str, float] = {"round": 28, "square": 30, "pear": 26, "tall": 18, "diamond": 23}  # y of the crown
WIDTHS: Mapping[str, float] = {
    "round": 33,
    "square": 33,
    "pear": 25,
    "tall": 23,
    "diamond": 33,
}  # half, at the shoulders


def regular(points: int, outer: float, inner: float) -> str:
    """A star: alternate corners at the outer and the inner radius around (0, 0)."""
    corners = []
    for number in range(2 * points):
        radius, angle = (outer, inner)[number % 2], math.pi * number / points
        corners.append(f"{radius * math.sin(angle):.2f} {-radius * math.cos(angle):.2f}")
    return f"M{'L'.join(corners)}z"


EMBLEMS: Mapping[str, str] = {  # paths around (0, 0), 24 units wide
    "star": regular(5, 13, 5.5),
    "heart": "M0 11C-18-2-11-13-5-11Q-1-10 0-6Q1-10 5-11C11-13 18-2 0 11z",
    "moon": "M3-13A13 13 0 1 0 13 3A10 10 0 1 1 3-13z",
    "bolt": "M3-13L-9 3H-1L-4 13L9-4H1z",
    "cross": "M-4-12H4V-4H12V4H4V12H-4V4H-12V-4H-4z",
    "ring": "M0-12A12 12 0 1 1 0 12A12 12 0 1 1 0-12zM0-5A5 5 0 1 0 0 5A5 5 0 1 0 0-5z",
    "drop": "M0-14C5-5 10-1 10 4A10 9.5 0 1 1-10 4C-10-1-5-5 0-14z",
    "leaf": "M-11 11C-14-6-2-13 12-12C13 2 6 14-11 11z",
    "triangle": "M0-13L13 10H-13z",
    "arrow": "M0-13L12 1H5V12H-5V1H-12z",
}

CRESTS: Mapping[str, Callable[[float], str]] = {  # shapes above the crown at height y, drawn behind the body
    "antennae": lambda y: (
        f'<path d="M54 {y + 4}L44 {y - 12}M74 {y + 4}L84 {y - 12}" stroke="{OUTLINE}" stroke-width="4"/>'
        f'<circle cx="44" cy="{y - 13}" r="5.5"/><circle cx="84" cy="{y - 13}" r="5.5"/>'
    ),
    "horns": lambda y: (
        f'<path d="M46 {y + 14}Q28 {y + 4} 32 {y - 14}Q42 {y - 4} 58 {y + 4}z'
        f'M82 {y + 14}Q100 {y + 4} 96 {y - 14}Q86 {y - 4} 70 {y + 4}z"/>'
    ),
    "ears": lambda y: f'<circle cx="42" cy="{y + 5}" r="12"/><circle cx="86" cy="{y + 5}" r="12"/>',
    "tuft": lambda y: f'<path d="M52 {y + 6}L48 {y - 12}L58 {y - 4}L64 {y - 18}L70 {y - 4}L80 {y - 12}L76 {y + 6}z"/>',
    "fin": lambda y: f'<path d="M48 {y + 8}Q56 {y - 18} 88 {y - 12}Q76 {y - 4} 80 {y + 8}z"/>',
}


def limb(start: Point, degrees: float, side: int, length: float, colour: str) -> str:
    """An arm or leg with a hand or foot; side -1 is left in the picture."""
    angle = math.radians(degrees)
    x, y = start[0] + side * length * math.sin(angle), start[1] + length * math.cos(angle)
    line = f'd="M{start[0]:.2f} {start[1]:.2f}L{x:.2f} {y:.2f}" stroke-linecap="round"'
    return (
        f'<path {line} stroke="{OUTLINE}" stroke-width="14"/><circle cx="{x:.2f}" cy="{y:.2f}" r="9" fill="{OUTLINE}"/>'
        f'<path {line} stroke="{colour}" stroke-width="9"/><circle cx="{x:.2f}" cy="{y:.2f}" r="6.5" fill="{colour}"/>'
    )


def eyes(y: float, pose: Pose) -> str:
    """Two eyes and a mouth."""
    parts = []
    for x in (53, 75):
        parts.append(f'<circle cx="{x}" cy="{y}" r="8" fill="#fff" stroke="{OUTLINE}" stroke-width="2"/>')
        pupil = f'cx="{x + 3.2 * pose.look[0]:.2f}" cy="{y + 3.2 * pose.look[1]:.2f}"'
        parts.append(f'<circle {pupil} r="4" fill="{OUTLINE}"/>')
    bend = f"M57 {y + 11}q7 9 14 0z" if pose.laughs else f"M58 {y + 12}q6 4 12 0"
    parts.append(f'<path d="{bend}" fill="{"#fff" if pose.laughs else "none"}" stroke="{OUTLINE}" stroke-width="2.5"/>')
    return "".join(parts)


def check_character(entry: Mapping[str, Any]) -> None:
    """Raise ConfigError for a part that the registries lack, or a missing colour."""
    place = f"characters.{entry['name']}"
    for key, registry in (("figure", FIGURES), ("crest", CRESTS), ("emblem", EMBLEMS)):
        known(f"{place}.{key}", entry.get(key), registry)
    for key in COLOURS:
        if key not in entry.get("colours", {}):
            raise ConfigError(f"{place}.colours", entry.get("colours"), f"has no {key}; write it as #rrggbb")


def character_svg(entry: Mapping[str, Any], pose_name: str) -> str:
    """The SVG text of a character in a pose; raises ConfigError for an unknown part or pose."""
    check_character(entry)
    known("poses", pose_name, POSES)
    pose, figure, colours = POSES[pose_name], entry["figure"], entry["colours"]
    top, width = TOPS[figure], WIDTHS[figure]
    limbs = [limb((64 + 13 * side, 92), pose.legs[side > 0], side, 24, colours["limbs"]) for side in (-1, 1)]
    limbs += [limb((64 + (width - 3) * side, 64), pose.arms[side > 0], side, 25, colours["limbs"]) for side in (-1, 1)]
    crest = f'<g fill="{colours["limbs"]}" stroke="{OUTLINE}" stroke-width="3">{CRESTS[entry["crest"]](top)}</g>'
    body = f'<path d="{FIGURES[figure]}" fill="{colours["body"]}" stroke="{OUTLINE}" stroke-width="3.5"/>'
    emblem = (
        f'<g transform="translate(64 78) scale(1.2)"><path d="{EMBLEMS[entry["emblem"]]}" fill="{colours["emblem"]}" '
        f'stroke="{OUTLINE}" stroke-width="2" fill-rule="evenodd"/></g>'
    )
    turn = f'transform="translate(0 {-pose.lift}) rotate({pose.lean} 64 104)"'
    inner = "".join([crest, *limbs, body, eyes(top + 20, pose), emblem])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{FRAME}"><g {turn} fill="none">{inner}</g></svg>'
