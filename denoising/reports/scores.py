"""The scores of sets in words and numbers: a table, a summary for JSON."""

import math


def decimals(value, form=".2f"):
    """A number for reading: 30.79, inf, or a dash for what is unknown."""
    return "-" if math.isnan(value) else format(value, form)


def score_summary(results):
    """The means of each set as dicts ready for JSON: what is infinite or unknown is None."""
    summary = []
    for result in results:
        means = {key: result.mean(key) for key in ("psnr_noisy", "ssim_noisy", "psnr", "ssim")}
        summary.append(
            {"set": result.name, "images": result.image_count, "repeats": result.repeats}
            | {key: value if math.isfinite(value) else None for key, value in means.items()}
            | {"seconds": round(result.seconds, 3)}
        )
    return summary


def score_table(results):
    """The means of each set as an aligned text table."""
    table = [("set", "images", "noisy PSNR", "PSNR", "gain", "SSIM")]
    for result in results:
        noisy, psnr, ssim = (result.mean(key) for key in ("psnr_noisy", "psnr", "ssim"))
        images = f"{result.image_count} x {result.repeats}"
        numbers = (decimals(noisy), decimals(psnr), decimals(psnr - noisy, "+.2f"))
        table.append((result.name, images, *numbers, decimals(ssim, ".4f")))
    return aligned(table)


def aligned(table):
    """Rows of words as text whose columns stand one below the other: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(lines)
