"""Curves of a training, as PNG files."""

import warnings
from pathlib import Path

import numpy as np

from denoising import cli
from denoising.reports.run_log import read_metrics

COLOURS = ("#2563a8", "#d9822b", "#3d8b5f", "#b5485d", "#7a5ba6", "#6b7280")  # of plots


def plot_curves(path, title, x_label, panels):
    """Draws curves to a PNG file, written atomically.

    `panels` are {y label: {series name: [(x, y), ...]}}, one under the other. A panel whose label speaks of a loss gets
    a logarithmic axis when its values span more than a factor of ten. Points that are not finite are left out.
    """
    # Imported here because it takes a second; not pyplot, which keeps figures and wants a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 0.9 + 3.1 * len(panels)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, parse_math=False)
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (y_label, series) in zip(rows, panels.items(), strict=True):
        curves, names, values = [], [], np.empty(0)
        for name, points in series.items():
            x, y = np.array(points, np.float64).reshape(-1, 2).T
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            if len(y):
                curves.append(_plot_curve(axes, x, y, COLOURS[len(curves) % len(COLOURS)]))
                names.append(name)
                values = np.concatenate([values, y])
        positive = values[values > 0]
        if "loss" in y_label.lower() and len(positive) and positive.max() > 10 * positive.min():
            # A term that is switched on later has no place on this axis while it is 0.
            axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel(y_label, parse_math=False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            for text in axes.legend(curves, names, frameon=False, fontsize=9).get_texts():
                text.set_parse_math(False)
    axes.set_xlabel(x_label, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    with cli.atomic_write(path) as temporary, warnings.catch_warnings():
        # A set may be named in a script that the font lacks: a box in the legend is enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary)


def plot_run(folder):
    """Draws a run's loss.png and psnr.png from what metrics.csv calls loss/, psnr/ and ssim/."""
    folder = Path(folder).resolve()
    metrics = read_metrics(folder)

    def series(kind):
        return {key[len(kind) :]: metrics[key] for key in metrics if key.startswith(kind)}

    psnr = series("psnr/")
    # Another noisy frame has noise of its own: these decibels are fewer than against the clean image.
    label = "PSNR [dB] against another noisy frame" if set(psnr) == {"another_frame"} else "PSNR [dB]"
    plots = {"loss.png": {"loss": series("loss/")}, "psnr.png": {label: psnr, "SSIM": series("ssim/")}}
    for name, panels in plots.items():
        drawn = {y_label: curves for y_label, curves in panels.items() if curves}
        if drawn:
            plot_curves(folder / name, f"{folder.parent.name} {folder.name}", "step", drawn)


def _plot_curve(axes, x, y, colour):
    """One curve, a long one faint with its running mean over it; returns the legend's line."""
    window = len(y) // 40
    if window < 3:
        marker = "o" if len(y) < 30 else None
        return axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=3.5)[0]
    axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
    total = np.concatenate([[0.0], np.cumsum(y)])
    mean = (total[window:] - total[:-window]) / window
    return axes.plot(x[window - 1 :], mean, color=colour, linewidth=1.6)[0]
