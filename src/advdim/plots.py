"""The book's figures: one style, and the figures that several chapters share. Tables in, figures out."""

from __future__ import annotations


def setup() -> None:
    """Set the style of every figure: a white grid, seaborn's colour-blind palette, no random ids in the files."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.8),
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
            "axes.titlesize": "medium",
            "svg.hashsalt": "advdim",
        }
    )
