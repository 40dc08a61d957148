"""`resurgence compare`: print and plot all erasers of a finished study."""

from __future__ import annotations

from argparse import Namespace

from resurgence.figures.comparison import draw_comparison, write_comparison


def run(args: Namespace) -> None:
    """Print the comparison and the paths of its pictures."""
    print(write_comparison(args.results, args.metric))
    draw_comparison(args.results, args.metric)
    for folder in ("figures", "cost"):
        print(args.results / folder / f"compare_{args.metric}.png")
