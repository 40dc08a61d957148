"""Scoring reads and prepares images ahead, in threads: the order, the errors and the values stay."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from resurgence.diffusion.image_sets import ahead
from resurgence.scorers.inception import clean_resize


def test_the_next_item_is_computed_while_one_is_in_use() -> None:
    """The consumer waits for the second item before it asks for it: without the thread it would wait for ever."""
    computed = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(computed):
            event.set()
            yield number

    received = []
    for number in ahead(items()):
        received.append(number)
        assert computed[min(number + 1, 2)].wait(30)
    assert received == [0, 1, 2] and list(ahead([])) == []


def test_an_error_comes_in_its_place() -> None:
    def items():
        yield 1
        raise ValueError("damaged")

    received = ahead(items())
    assert next(received) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(received)


def test_resizing_in_threads_gives_the_same_values() -> None:
    images = torch.randint(0, 256, (9, 3, 20, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = [
        [
            np.asarray(Image.fromarray(c.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
            for c in image
        ]
        for image in images
    ]
    assert torch.equal(clean_resize(images), torch.from_numpy(np.array(expected)).clamp(0, 255))
