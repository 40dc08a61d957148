"""`resurgence compare`: print and plot all erasers of a finished study."""

from __future__ import annotations

from argparse import Namespace

from resurgence.figures.comparison import draw, write


def run(args: Namespace) -> None:
    """Print the comparison and say where the picture is."""
    print(write(args.results, args.metric))
    draw(args.results, args.metric)
    for folder in ("figures", "cost"):
        print(args.results / folder / f"compare_{args.metric}.png")
