"""The scores of sets in words and numbers: a table, a summary for JSON."""

import math

from denoising.reports.page import decimals, image_count, repeats


def score_summary(results):
    """The means of each set as dicts ready for JSON: what is infinite or unknown is None.

    Args:
        results: the `denoising.SetScores` of each set.
    """
    summary = []
    for result in results:
        means = {key: result.mean(key) for key in ("psnr_noisy", "ssim_noisy", "psnr", "ssim")}
        summary.append(
            {"set": result.name, "images": image_count(result), "repeats": repeats(result)}
            | {key: value if math.isfinite(value) else None for key, value in means.items()}
            | {"seconds": round(result.seconds, 3)}
        )
    return summary


def score_table(results):
    """The means of each set as an aligned text table."""
    table = [("set", "images", "noisy PSNR", "PSNR", "gain", "SSIM")]
    for result in results:
        noisy, psnr, ssim = (result.mean(key) for key in ("psnr_noisy", "psnr", "ssim"))
        images = f"{image_count(result)} x {repeats(result)}"
        numbers = (decimals(noisy), decimals(psnr), decimals(psnr - noisy, "+.2f"))
        table.append((result.name, images, *numbers, decimals(ssim, ".4f")))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)
