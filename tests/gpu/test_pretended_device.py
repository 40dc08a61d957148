"""The pretended device itself: what it refuses, and what it counts, in a process of its own (cases.py says why)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
Call = Callable[[torch.Tensor], object]  # of a tensor [-1, 0, 1, 2, 3] on the device


def assign(a: torch.Tensor, where: torch.Tensor, value: torch.Tensor) -> None:
    a[where] = value


REFUSED: dict[str, Call] = {
    "sum": lambda a: a + torch.ones(5),
    "product": lambda a: torch.ones(2, 5) @ a,
    "joined": lambda a: torch.cat([a, torch.ones(5)]),
    "written in place": lambda a: torch.ones(5).add_(a),
    "chosen": lambda a: torch.where(a > 0, a, torch.ones(5)),
    "a CPU tensor indexed by one of the device": lambda a: torch.ones(5)[a > 0],
}
WAITING: dict[str, Call] = {
    "item": lambda a: a[0].item(),
    "condition": lambda a: bool(a.sum() > 0),
    "number": lambda a: float(a.sum()),
    "tolist": lambda a: a.tolist(),
    "equal": lambda a: torch.equal(a, a + 1),
    "nonzero": lambda a: a.nonzero(),
    "mask": lambda a: a[a > 0],
    "mask, written": lambda a: assign(a, a > 0, a[2:].clone()),
    "masked_select": lambda a: a.masked_select(a > 0),
    "repeat_interleave": lambda a: a.repeat_interleave(a.long() + 1),
    "unique": lambda a: a.unique(),
    "inverse": lambda a: torch.linalg.inv(torch.outer(a, a) + torch.eye(5, device=a.device)),
}
WORKING: dict[str, Call] = {
    "products": lambda a: torch.softmax(torch.outer(a, a) @ a, 0),
    "slices": lambda a: a[1:3] * a[..., 2:4],
    "positions": lambda a: a[(a > 0).long()],
    "a choice": lambda a: torch.where(a > 0, a, -a),
    "filled where": lambda a: a.masked_fill(a > 0, 2.0),
    "a scalar of the CPU": lambda a: a * torch.tensor(2.0),
    "repeat_interleave by a number": lambda a: a.repeat_interleave(2),
    "repeat_interleave to a known size": lambda a: a.repeat_interleave(a.long() + 1, output_size=10),
    "backward": lambda a: (a.clone().requires_grad_() ** 2).sum().backward(),
}
COPYING: dict[str, tuple[str, Call]] = {
    "cpu": ("download", lambda a: a.cpu()),
    "to": ("download", lambda a: a.to("cpu", torch.float64)),
    "copied from": ("download", lambda a: torch.empty(5).copy_(a)),
    "up": ("upload", lambda a: torch.ones(5).to(a.device)),
    "copied to": ("upload", lambda a: a.copy_(torch.ones(5))),
    "made there of numbers": ("upload", lambda a: torch.tensor([1.0, 2.0], device=a.device)),
}


@pytest.fixture(scope="module")
def observed() -> dict[str, dict]:
    """What the calls above do on the device: this file, run as a script."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}/tests/gpu", "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.check_output([sys.executable, __file__], env=env, text=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_mix_of_both_devices_is_refused(name: str, observed: dict[str, dict]) -> None:
    assert "expected all tensors on pretend:0, found a CPU tensor" in observed["refused"][name]


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_for_the_queue_is_counted_once(name: str, observed: dict[str, dict]) -> None:
    assert observed["counted"][name] == {"sync": 1}


@pytest.mark.parametrize("name", COPYING)
def test_a_copy_between_the_devices_is_counted_once(name: str, observed: dict[str, dict]) -> None:
    assert observed["counted"][name] == {COPYING[name][0]: 1}


@pytest.mark.parametrize("name", WORKING)
def test_work_on_the_device_waits_for_nothing(name: str, observed: dict[str, dict]) -> None:
    assert observed["counted"][name] == {} and observed["operations"][name] > 0


def test_two_masks_are_two_waits_and_their_gradient_waits_again(observed: dict[str, dict]) -> None:
    assert observed["counted"]["two masks"] == {"sync": 2} and observed["counted"]["gradient of a mask"] == {"sync": 2}


STRICT = ["aten.histc on pretend:0 does not have a deterministic implementation", [1.0, 1.0, 1.0, 1.0, 1.0]]


def test_the_device_refuses_in_strict_mode_what_cuda_refuses(observed: dict[str, dict]) -> None:
    assert observed["strict"] == STRICT
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_a_copy_on_the_cpu_has_an_array(observed: dict[str, dict]) -> None:
    assert observed["refused"]["numpy"] and observed["array"] == [-1, 0, 1, 2, 3]


def refusals(fresh: Callable[[], torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Each call of REFUSED, and the message that it raises; empty: none."""
    for name, call in {**REFUSED, "numpy": lambda a: a.numpy()}.items():
        message = ""
        try:
            call(fresh())
        except RuntimeError as error:
            message = str(error)
        yield name, message


def in_strict_mode(values: torch.Tensor) -> list:
    """The message of an operation without a deterministic kernel, and its result outside of strict mode."""
    from resurgence.diffusion.device import exact

    with exact(values.device):
        assert values.sum().item() == 5
        try:
            values.histc(5)
        except RuntimeError as error:
            message = str(error)
    return [message, values.histc(5).tolist()]


def main() -> None:
    """Print what each call does, as JSON."""
    from pretended import COUNTS, pretended

    device = pretended()
    calls = WAITING | WORKING | {name: call for name, (_, call) in COPYING.items()}
    calls["two masks"] = lambda a: torch.outer(a, a)[a > 0, a > 0]
    calls["gradient of a mask"] = lambda a: a.clone().requires_grad_()[a > 0].sum().backward()
    counts: dict[str, Counter[str]] = {}
    for name, call in calls.items():
        values = torch.arange(-1.0, 4.0).to(device)
        COUNTS.clear()
        call(values)
        counts[name] = +COUNTS
    result = {
        "operations": {name: count.pop("ops", 0) for name, count in counts.items()},
        "counted": counts,
        "refused": dict(refusals(lambda: torch.arange(-1.0, 4.0).to(device))),
        "array": torch.arange(-1.0, 4.0).to(device).cpu().numpy().tolist(),
        "strict": in_strict_mode(torch.arange(-1.0, 4.0).to(device)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
