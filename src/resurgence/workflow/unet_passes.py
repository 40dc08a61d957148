"""UNet passes of the erasers, for the hours of `resurgence plan`, as each page counts them in its section Cost.

A method that is not listed here, of another package, is taken to need one pass with gradient and two without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Settings = Mapping[str, Any]
Passes = tuple[float, float]  # with gradient and without, of each sample of a step


def walking(s: Settings, of_base: str = "x_t") -> float:
    """Passes without gradient on the way to a sample of the model in training: half of the DDIM steps, guided."""
    return 0.0 if s[of_base] == "base" else s["ddim_steps"]


def pooled(s: Settings, concepts: int, trajectories: str = "trajectories") -> float:
    """Passes without gradient for the trajectories of the frozen base, once."""
    return concepts * s[trajectories] * (s["ddim_steps"] - 1) * (2 if s["guidance"] > 1 else 1)


def spm(s: Settings, concepts: int) -> Passes:
    """The concept and the anchors; with an adapter for each concept all of this for each of them."""
    adapters = concepts if s["adapters"] == "concept" else 1
    return adapters * (1 + s["anchors"]), adapters * (2 + s["anchors"] + walking(s))


def eap(s: Settings, _: int) -> Passes:
    """Concept and adversarial word, and the search for it through one model or both."""
    both = s["through"] == "both"
    searched = s["search_steps"] * (2 if both else 1), s["search_steps"] * (0 if both else 1)
    return 2 + searched[0], 2 + (s["target"] == "guided") + searched[1] + walking(s)


def advunlearn(s: Settings, _: int) -> Passes:
    """Erased and retained captions, and after the warm-up the attack."""
    retained = s["retain_batch"] / s["batch"]
    attack = s["attack_steps"] / s["attack_every"] * (1 - s["warmup"] / s["steps"])
    return 1 + retained + attack, 2 + retained + attack


def doco(s: Settings, _: int) -> Passes:
    """Concept and anchor, and a second way back through both, which costs as much as two more passes each."""
    return 2, 4 + (s["anchor_from"] == "frozen")


def erasediff(s: Settings, _: int) -> Passes:
    """Both sides and the inner steps."""
    inner = s["inner_steps"]
    return 2 + inner, 1 + inner + 2 * (inner > 0 and s["inner_value"] == "last")


STEP: dict[str, Callable[[Settings, int], Passes]] = {
    "esd": lambda s, _: (1, 2 + walking(s)),
    "sdd": lambda s, _: (1, 1 + walking(s, "z_t")),
    "spm": spm,
    "eap": eap,
    "advunlearn": advunlearn,
    "ca": lambda s, _: (1 + (s["anchor_weight"] > 0), s["loss"] == "model-based"),
    "fmn": lambda s, _: (1, 0),
    "doco": doco,
    "salun": lambda s, _: (2, 1),
    "erasediff": erasediff,
    "scissorhands": lambda s, _: (2, s["forget"] == "pseudo"),
}


def passes(method: str, settings: Settings, concepts: int) -> Passes:
    """UNet passes of each sample of a step, with gradient and without.

    Args:
        method: the eraser's module. concepts: erased ones.
    """
    name = method.rpartition(".")[2]
    return STEP[name](settings, concepts) if method == f"resurgence.erasers.{name}" and name in STEP else (1, 2)


def once(s: Settings, erased: int, retained: int) -> Passes:
    """Samples that pass the UNet before the training, with gradient (masks, trimming) and without (trajectories)."""
    graded = plain = 0.0
    for phase in ("mask", "saliency"):
        if f"{phase}_steps" in s:
            graded += s[f"{phase}_steps"] * s["batch"] * (2 if s[f"{phase}_guidance"] else 1)
    if "trajectories" in s and s.get("x_t", s.get("z_t", "base")) == "base":
        plain += pooled(s, erased)
        plain += pooled(s, retained, "retain_trajectories") if "retain_trajectories" in s else 0.0
    return graded, plain
