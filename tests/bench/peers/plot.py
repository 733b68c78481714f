"""The times of one or more cases as bars, in SVG."""

import matplotlib

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "lowbit"
# Text stays text: half the size.
matplotlib.rcParams["svg.fonttype"] = "none"

import matplotlib.pyplot as plt  # noqa: E402

#: Where the axis ends, in ns/param: longer bars are cut, and their numbers say how long they are.
END = 4

LOWBIT, OTHERS = ("#1b6ca8", "#8fbbdb"), ("#8a8a8a", "#c9c9c9")


def draw(path, panels):
    """panels: list of (title, [(name, {threads: ns/param})])."""
    rows = max(len(bars) for _, bars in panels)
    figure, all_axes = plt.subplots(
        1, len(panels), sharey=True, figsize=(5.2 * len(panels), 0.42 * rows + 0.9), squeeze=False
    )
    names = [name for name, _ in max((bars for _, bars in panels), key=len)]
    for axes, (title, bars) in zip(all_axes[0], panels):
        for name, times in bars:
            place = names.index(name)
            for i, ns in enumerate(times.values()):
                y = place + 0.38 * (i - (len(times) - 1) / 2)
                colours = LOWBIT if name.startswith("lowbit") else OTHERS
                axes.barh(y, min(ns, END), 0.36, color=colours[min(i, 1)])
                inside = ns > 0.8 * END
                axes.annotate(
                    f"{ns:.2f}{' →' if ns > END else ''}",
                    (min(ns, END), y),
                    xytext=(-3 if inside else 3, 0),
                    textcoords="offset points",
                    ha="right" if inside else "left",
                    va="center",
                    fontsize=7,
                    color="white" if inside and i == 0 else "black",
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, END)
        axes.set_xlabel(
            "ns/param; upper bar one thread, lower bar two; shorter is better", fontsize=7
        )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
