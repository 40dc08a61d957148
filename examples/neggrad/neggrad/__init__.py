"""NegGrad+ (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880, Eq. 1) for diffusion models: its settings.

    min  alpha E ||eps_theta(x_t, c_retain) - noise||^2 - (1 - alpha) E ||eps_theta(x_t, c*) - noise||^2

Gradient ascent on images of the erased concepts, descent on images of the retained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resurgence.erasers import ConfigError, Optimisation, Passes, Template


@dataclass(frozen=True)
class NeggradConfig(Optimisation):
    """Settings; the paper's alpha is tuned for each data set."""

    module: ClassVar[str] = "neggrad.objective"
    needs: ClassVar[frozenset[str]] = frozenset({"images", "retained"})

    alpha: float = 0.9  # weight of the retained concepts
    template: Template = "a photo of the {}"  # the caption of an image

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError("alpha", self.alpha, "must lie between 0 and 1")

    def step_passes(self, erased: int) -> Passes:
        """An image of either side."""
        return Passes(2, 0)
