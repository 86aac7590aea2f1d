"""A model card as a page of Markdown, from what model_card.py has measured."""

RECIPE = """\
1. Decode to height x width x 3, RGB, 8 bits (grey: one channel; 16 bits: divide by 65535 below).
2. To float32, divided by 255: 0 is black, 1 is white. No mean is subtracted, nothing is clipped.
3. To N x C x H x W, channels first. Any height and width: the file itself extends the image by reflection at the
   bottom and at the right to what the network needs, and crops the result again.
4. Run: input `noisy`, output `denoised` (Paddle: the first of each), float32 in every precision.
5. Back to H x W x C, times 255, rounded to the nearest, clipped to 0..255."""


def markdown(card):
    """The whole page."""
    here = [row for row in card["rows"] if "absent" not in row]
    absent = [f"- {row['runtime']}, {row['precision']}: {row['absent']}" for row in card["rows"] if "absent" in row]
    parts = (
        head(card),
        quality(card, here),
        speed(here),
        throughput(here),
        ["## Not measured", "", *(absent or ["Nothing is missing."])],
        [
            "## Before and after the network",
            "",
            "What `infer.py` does on every runtime, in every precision:",
            "",
            RECIPE,
        ],
    )
    return "\n".join(line for part in parts if part for line in (*part, ""))


def head(card):
    """What was measured, where, and what it costs."""
    told, network, gflop = card["machine"], card["network"], card["flops_256"] / 1e9
    return [
        f"# {card['name']}: deployment",
        "",
        f"    {card['command']}",
        "",
        f"{told['date']}, {told['processor']}, {told['cores']} cores ({', '.join(told['instructions'])}), load "
        f"{told['load_before']} before the start; python {told['python']}, paddle {told['paddle']}, commit "
        f"{told['commit'][:12]}. Measured in {card['minutes']} minutes. All figures are in "
        f"`{card['name']}_deployment.json`.",
        "",
        f"Network: {', '.join(f'{key} {value}' for key, value in network.items())}; {card['parameters']:,} parameters; "
        f"at {network['n_channel']}x256x256 {gflop:.2f} GFLOP, {gflop / 2:.2f} G multiply-adds counted as two.",
    ]


def table(heads, rows):
    """Lines of a table."""
    cells = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(str, each))} |" for each in cells]


def quality(card, rows):
    """PSNR and SSIM by precision, with what each loses against the first row."""
    scored = [row for row in rows if "psnr" in row]
    if not scored:
        return []
    first, checked = scored[0], card["validation"]
    about = (
        f"{checked['set']}, {checked['noise']}, {checked['images']} images x {checked['repeats']}, scored as by val.py "
        f"(noisy: {first['psnr_noisy']:.3f} dB, {first['ssim_noisy']:.4f})."
    )
    if "int8" in card:
        made = card["int8"]
        about += (
            f" 8 bits: ranges by {made['method']}, calibrated on other images (noise added: {made['noise']}); left in "
            f"float: {', '.join(made['float_layers']) or 'nothing'}."
        )
    heads = "precision", "runtime", "GFLOP", "parameters", "file", "PSNR", "loss", "SSIM", "loss", "largest difference"
    lines = []
    for row in scored:
        psnr, ssim = row["psnr"], row["ssim"]
        losses = ("", "") if row is first else (f"{psnr - first['psnr']:+.3f}", f"{ssim - first['ssim']:+.4f}")
        work = f"{card['flops_256'] / 1e9:.2f}", f"{card['parameters'] / 1e6:.3f} M", size_of(card, row)
        scores = f"{psnr:.3f}", losses[0], f"{ssim:.4f}", losses[1], f"{row['largest_difference']:.1e}"
        lines.append((row["precision"], row["runtime"], *work, *scores))
    worst = max((row["largest_difference"] for row in rows if row["precision"] == "fp32"), default=0.0)
    return [
        "## Quality", "", about, "", *table(heads, lines), "",
        "The largest difference is that of a value from the network on noisy pictures, where white is 1; of all "
        f"runtimes in fp32 it is at most {worst:.1e}, so that only the first of them is scored.",
    ]  # fmt: skip


def size_of(card, row):
    """The size of a row's files, weights included."""
    if not row["file"]:
        return "the weights"
    names = {row["file"], row["file"].replace(".pdmodel", ".pdiparams")}
    return f"{sum(card['files'][name] for name in names) / 1e6:.2f} MB"


def columns(rows, single):
    """The (size, batch, threads) that were measured, of single images or of batches; with their headings."""
    found = {(each["size"], each["batch"], each["threads"]) for row in rows for each in row["latency"]}
    found = sorted(key for key in found if (key[1] == 1) == single)
    heads = []
    for size, batch, threads in found:
        count = "" if single else f"{batch} x "
        heads.append(f"{count}{size}x{size}, {threads} thread{'s' if threads > 1 else ''}")
    return found, heads


def by_column(row):
    """A row's latencies by (size, batch, threads)."""
    return {(each["size"], each["batch"], each["threads"]): each for each in row["latency"]}


def speed(rows):
    """Latencies and memory, and how many times as fast as the fastest in fp32."""
    keys, heads = columns(rows, single=True)
    floats = [by_column(row) for row in rows if row["precision"] == "fp32"]
    fastest = {key: min(each[key]["median_ms"] for each in floats if key in each) for key in keys}
    lines = []
    for row in rows:
        found = by_column(row)
        times = [f"{found[key]['median_ms']:.1f} ({found[key]['p90_ms']:.1f})" if key in found else "" for key in keys]
        ratios = [fastest[key] / found[key]["median_ms"] for key in keys if key in found]
        ratio = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append((row["precision"], row["runtime"], *times, ratio, f"{row['peak_mib']:.0f}"))
    return [
        "## Speed and memory", "",
        "Milliseconds for one image, median and (90th percentile). Times as fast: as the fastest row of fp32 in the "
        "same column, from the worst column to the best. MiB: the peak of the whole process, with one image of the "
        "largest size.",
        "", *table(["precision", "runtime", *heads, "times as fast", "MiB"], lines),
    ]  # fmt: skip


def throughput(rows):
    """Images per second in batches."""
    keys, heads = columns(rows, single=False)
    if not keys:
        return []
    lines = []
    for row in rows:
        found = by_column(row)
        speeds = [f"{found[key]['images_per_second']:.2f}" if key in found else "" for key in keys]
        lines.append((row["precision"], row["runtime"], *speeds))
    return ["Images per second in batches:", "", *table(["precision", "runtime", *heads], lines)]
