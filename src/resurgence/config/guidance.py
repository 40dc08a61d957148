"""The two ways in which guidance is stated: the scale of classifier-free guidance, and the weight of a guided loss."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

GAP = {"not": {"exclusiveMinimum": 0, "exclusiveMaximum": 1}}  # in the JSON schema


def scale_of_guidance(value: float) -> float:
    """Return a scale that is 0, 1 or more; between 0 and 1 sampling would have no guidance, without saying so.

    Raises:
        ValueError: a scale between 0 and 1.
    """
    if 0 < value < 1:
        raise ValueError("must be 0 or 1, both without guidance, or more than 1; write one of these")
    return value


GuidanceWeight = Annotated[float, Field(ge=0, le=1000)]  # the prediction grows with it, and overflows
Guidance = Annotated[GuidanceWeight, AfterValidator(scale_of_guidance), Field(json_schema_extra=GAP)]
