"""A model card as a section of a page of Markdown, from what tools/model_card.py has measured."""

from urllib.parse import quote

from denoising.cli import UserError

START = "<!-- written by tools/model_card.py; from here -->"
END = "<!-- to here -->"

RECIPE = """\
1. Decode to height x width x 3, RGB, 8 bits (grey: one channel; 16 bits: divide by 65535 below).
2. To float32, divided by 255: 0 is black, 1 is white. No mean is subtracted, nothing is clipped.
3. To N x C x H x W, channels first. Any height and width: the file itself extends the image by reflection at the
   bottom and at the right to what the network needs, and crops the result again.
4. Run: input `noisy`, output `denoised` (Paddle: the first of each), float32 in every precision.
5. Back to H x W x C, times 255, rounded to the nearest, clipped to 0..255."""


# --- The page -----------------------------------------------------------------------------------------------


def find_section(path, text):
    """Where the section starts and ends in a page; None without one."""
    if START not in text and END not in text:
        return None
    start, end = text.find(START), text.find(END)
    if text.count(START) != 1 or text.count(END) != 1 or end < start:
        raise UserError(f"--save_dir: {path}: the marks around the card are not one pair: {START} and {END}")
    return start, end + len(END)


def with_section(path, text, section):
    """The page with its section replaced, or added at the end; all else stays as it is."""
    found = find_section(path, text)
    if found is None:
        return f"{text.rstrip()}\n\n{section}\n"
    return text[: found[0]] + section + text[found[1] :]


def section(card, guide):
    """The card between its marks; `guide` is how it names docs/deployment.md."""
    here = [row for row in card["rows"] if "absent" not in row]
    absent = [f"- {row['runtime']}, {row['precision']}: {row['absent']}" for row in card["rows"] if "absent" in row]
    parts = (
        head(card, guide),
        quality(card, here),
        speed(here),
        throughput(here),
        goals(card),
        ["### Not measured", "", *(absent or ["Nothing is missing."])],
        [
            "### Before and after the network",
            "",
            "What `infer.py` does on every runtime, in every precision:",
            "",
            RECIPE,
        ],
    )
    return "\n".join([START, *(line for part in parts if part for line in (*part, "")), END])


def head(card, guide):
    """What was measured, where, and what it costs."""
    about, network, gflop = card["machine"], card["network"], card["flops_256"] / 1e9
    data = f"{card['name']}.json"
    return [
        "## Deployment",
        "",
        f"    {card['command']}",
        "",
        f"{about['date']}, {about['processor']}, {about['cores']} cores ({', '.join(about['instructions'])}), load "
        f"{about['load_before']} before the start; python {about['python']}, paddle {about['paddle']}, commit "
        f"{about['commit'][:12]}. Measured in {card['minutes']} minutes. All figures are in "
        f"[{data}]({quote(data)}); what they mean is in {guide}.",
        "",
        f"Network: {', '.join(f'{key} {value}' for key, value in network.items())}; {card['parameters']:,} parameters; "
        f"at {network['n_channel']}x256x256 **{gflop:.2f} GFLOP**: {gflop / 2:.2f} G multiply-adds counted as two.",
    ]


# --- Tables -------------------------------------------------------------------------------------------------


def table(heads, rows):
    """Lines of a table."""
    cells = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in cells]


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
        "### Quality", "", about, "", *table(heads, lines), "",
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
    found = {key for row in rows for key in by_column(row)}
    found = sorted(key for key in found if (key[1] == 1) == single)
    heads = []
    for size, batch, threads in found:
        count = "" if single else f"{batch} x "
        heads.append(f"{count}{size}x{size}, {threads} thread{'s' if threads > 1 else ''}")
    return found, heads


def by_column(row):
    """A row's latencies by (size, batch, threads)."""
    return {(timing["size"], timing["batch"], timing["threads"]): timing for timing in row["latency"]}


def speed(rows):
    """Latencies and memory, and how many times as fast as the fastest in fp32."""
    keys, heads = columns(rows, single=True)
    floats = [by_column(row) for row in rows if row["precision"] == "fp32"]
    fastest = {key: min(row[key]["median_ms"] for row in floats if key in row) for key in keys}
    lines = []
    for row in rows:
        found = by_column(row)
        times = [f"{found[key]['median_ms']:.1f} ({found[key]['p90_ms']:.1f})" if key in found else "" for key in keys]
        ratios = [fastest[key] / found[key]["median_ms"] for key in keys if key in found]
        ratio = " to ".join(f"{extreme:.2f}" for extreme in sorted({min(ratios), max(ratios)}))
        lines.append((row["precision"], row["runtime"], *times, ratio, f"{row['peak_mib']:.0f}"))
    return [
        "### Speed and memory", "",
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


# --- Goals --------------------------------------------------------------------------------------------------

OTHERS = ("ONNX Runtime", "OpenVINO")  # what the project is compared with
SAME = 1.03  # ratios of times nearer to 1 than this repeat no better
FASTER = {"bf16": (2.0, 0.01), "int8": (3.0, 0.05)}  # times as fast as our fp32, at a loss in dB below this


def reached(rows):
    """The goals of a deployment, each with what was measured and a verdict; those with nothing to compare are left out.

    Single images, with the most threads that all were measured with.
    """
    here = [row for row in rows if "absent" not in row]
    keys = {key for row in here for key in by_column(row) if key[1] == 1}
    threads = max((key[2] for key in keys), default=0)
    keys = sorted(key for key in keys if key[2] == threads)
    return [goal for key in keys for goal in _goals_at(here, key)]


def _goals_at(rows, key):
    times = [(by_column(row)[key]["median_ms"], row) for row in rows if key in by_column(row)]

    def fastest(others):
        found = [pair for pair in times if pair[1]["precision"] == "fp32" and (pair[1]["runtime"] in OTHERS) == others]
        return min(found, key=lambda pair: pair[0], default=(None, None))

    def phrase(time, row):
        return f"{time:.1f} ms ({row['runtime']})"

    where = f"{key[0]}x{key[0]}, {key[2]} thread{'s' if key[2] > 1 else ''}"
    (ours, row), (theirs, other) = fastest(False), fastest(True)
    if ours and theirs:
        ratio = ours / theirs
        verdict = "yes" if ratio <= 1 else "the same within 3 %" if ratio <= SAME else f"no, {ratio:.2f} times as long"
        yield {"goal": f"fp32 not slower than ONNX Runtime and OpenVINO, {where}",
               "measured": f"{phrase(ours, row)} against {phrase(theirs, other)}", "verdict": verdict}  # fmt: skip
    reference = next((row["psnr"] for row in rows if "psnr" in row and row["precision"] == "fp32"), None)
    for precision, (wanted, decibels) in FASTER.items():
        found = [
            (reference is not None and "psnr" in row and reference - row["psnr"] >= decibels, time, row)
            for time, row in times
            if row["precision"] == precision
        ]
        if not (ours and found):
            continue
        # The fastest of those that lose little; if all lose more, the fastest.
        worse, time, row = min(found, key=lambda candidate: candidate[:2])
        ratio = ours / time
        loss = f", {row['psnr'] - reference:+.3f} dB" if "psnr" in row and reference is not None else ""
        verdict = "yes" if ratio >= wanted else "the same within 3 %" if ratio * SAME >= wanted else "no"
        yield {"goal": f"{precision} {wanted:g} times as fast as our fp32, losing less than {decibels:g} dB, {where}",
               "measured": f"{phrase(time, row)}, {ratio:.2f} times as fast{loss}",
               "verdict": "no" if worse else verdict}  # fmt: skip


def goals(card):
    """What was to be reached, and whether it is."""
    if not card["goals"]:
        return []
    lines = [(goal["goal"], goal["measured"], goal["verdict"]) for goal in card["goals"]]
    return ["### Goals", "", *table(["goal", "measured", "reached"], lines)]
