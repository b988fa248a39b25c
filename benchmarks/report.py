"""Turn benchmarks/results/**/*.json into docs/benchmarks.md, plots, pages of experiments, README's figures.

    python benchmarks/report.py

Every figure in the docs comes from here. Races that pyfast loses are printed like the others, and listed.
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = "pyfast"


def races(content):
    """The rows of one pytest-benchmark file: family, case, device, peer, seconds, and what else was recorded."""
    rows = []
    for b in content["benchmarks"]:
        parameters = dict(b["params"] or {})
        peer, device = parameters.pop("peer", OURS), parameters.pop("device", "cpu")
        case = re.sub(r"(^|-)(cpu|cuda)(-|$)", r"\1", b["param"] or "").removesuffix(peer).strip("-")
        family = Path(b["fullname"].split("::")[0]).stem.removeprefix("bench_")
        race = b["name"].split("[")[0].removeprefix("bench_")
        seconds = {"best": b["stats"]["min"], "median": b["stats"]["median"]}
        rows.append(
            {"family": family, "race": race, "case": case, "device": device, "peer": peer} | seconds | b["extra_info"]
        )
    return content["machine_info"], content["datetime"][:10], rows


def grouped(rows):
    """{(family, race, device, case): its rows}, pyfast's first, then by time."""
    groups = {}
    for row in rows:
        groups.setdefault((row["family"], row["race"], row["device"], row["case"]), []).append(row)
    order = {key: sorted(g, key=lambda r: (not r["peer"].startswith(OURS), r["best"])) for key, g in groups.items()}
    return dict(sorted(order.items()))


def own(rows):
    """Our row of a race, or None."""
    return next((row for row in rows if row["peer"] == OURS), None)


def machine(info):
    """The machine in a paragraph."""
    versions = ", ".join(f"{name} {v}" for name, v in info["versions"].items() if v)
    lines = [f"{info['processor']}, {info['threads']} threads, kernels {info['level']}; GPU {info['gpu'] or 'none'}."]
    lines.append(f"Python {info['python_version']}, {versions}.")
    for device, found in info.get("limits", {}).items():
        gb = ", ".join(f"{how} {found[how] / 1e9:,.0f} GB/s" for how in ("read", "write", "copy"))
        flops = ", ".join(f"{how} {rate / 1e9:,.0f} GFLOP/s" for how, rate in found.items() if how.startswith("matmul"))
        lines.append(f"Measured limits of the {device}: {gb} (write and copy count both directions), {flops}.")
    return "\n".join(lines)


def markdown(header, rows):
    """A Markdown table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, rule, *rows])


def race_table(rows):
    """One race: every peer's best and median time, against pyfast's, share of the limit, extra memory."""
    ours = own(rows)
    body = []
    for row in rows:
        ratio = f"{row['best'] / ours['best']:.2f}x" if ours else ""
        share = f"{row['share']:.0%}" if "share" in row else ""
        memory = row.get("extra_memory")
        off = row.get("pruned_too_many")
        note = f" (prunes {off:+,})" if off else f" ({row['note']})" if "note" in row else ""
        note += f" ({row['against_plain']:.2f} of its plain time)" if "against_plain" in row else ""
        best, median = duration(row["best"]), duration(row["median"])
        body.append([row["peer"] + note, best, median, ratio, share, "" if memory is None else size(memory)])
    floor = next((row["floor"] for row in rows if "floor" in row), None)
    if floor:
        body.append(["*floor: the memory's or processor's own limit*", duration(floor), "", "", "100%", ""])
    return markdown(["", "best", "median", "time against pyfast's", "share of limit", "extra memory"], body)


def losses(groups):
    """Races in which a peer was faster than pyfast."""
    return [
        f"- {title(key)}: {row['peer']} takes {row['best'] / ours['best']:.2f} of pyfast's time"
        for key, rows in groups.items()
        if (ours := own(rows))
        for row in rows
        if not row["peer"].startswith(OURS) and row["best"] < ours["best"]
    ]


def headlines(groups):
    """Of every race the case in which we lead least; not of options, which stand beside the call without."""
    rows = {}
    for key, group in groups.items():
        ours, peers = own(group), [row for row in group if not row["peer"].startswith(OURS)]
        if ours and peers and "against_plain" not in ours:
            best = min(peers, key=lambda row: row["best"])
            lead = best["best"] / ours["best"]
            share = f"{ours['share']:.0%}" if "share" in ours else ""
            times = [duration(ours["best"]), f"{best['peer']}, {duration(best['best'])}"]
            race = key[:3]  # family, race, device
            if race not in rows or lead < rows[race][0]:
                rows[race] = lead, [title(key), *times, f"{lead:.1f}x", share]
    return [row for _, row in rows.values()]


def title(key):
    """Family, race, case and device in a line."""
    family, race, device, case = key
    return f"{family} `{race}`, {case} ({device})"


def duration(seconds):
    """With three digits and a fitting unit."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(n):
    """Bytes with a fitting unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{max(n, 0):.0f} B"


def plot(groups, family, path):
    """Bars: every peer's best time in every race of a family, on a log scale, with the floor as a line."""
    from matplotlib.figure import Figure

    chosen = [(key, rows) for key, rows in groups.items() if key[0] == family]
    figure = Figure(figsize=(9, 0.6 + 0.28 * sum(len(rows) + 1 for _, rows in chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False, height_ratios=[len(rows) for _, rows in chosen])
    for (key, rows), ax in zip(chosen, axes[:, 0], strict=True):
        colours = ["tab:green" if row["peer"].startswith(OURS) else "tab:gray" for row in rows]
        ax.barh([row["peer"] for row in rows], [1e3 * row["best"] for row in rows], color=colours)
        floor = next((row["floor"] for row in rows if "floor" in row), None)
        if floor:
            ax.axvline(1e3 * floor, color="black", linestyle=":", linewidth=1)
        ax.set_title(title(key).replace("`", ""), fontsize=8, loc="left")
        ax.tick_params(labelsize=7)
        ax.set_xscale("log")
        ax.invert_yaxis()
    axes[-1, 0].set_xlabel("best time, ms (dotted: the machine's own limit)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def fill(readme, rows):
    """Put the table between the README's markers; nothing happens where it has none."""
    if not readme.exists():
        return
    table = markdown(["", "pyfast", "fastest other", "speed-up", "share of limit"], rows)
    text = readme.read_text()
    between = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
    readme.write_text(between.sub(lambda m: f"{m[1]}{table}\n{m[2]}", text))


def curves(plots, path):
    """Lines, over time on a log scale unless the plot says another: one panel for each plot."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(4.2 * len(plots), 3.6), layout="constrained")
    for content, ax in zip(plots, figure.subplots(1, len(plots), squeeze=False)[0], strict=True):
        for name, points in content["lines"].items():
            ax.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=name)
        ax.set_title(content["title"], fontsize=8)
        ax.set_xlabel(content["x"], fontsize=8)
        ax.set_ylabel(content["y"], fontsize=8)
        ax.tick_params(labelsize=7)
        if content.get("scale", "log") == "log":
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.xaxis.set_minor_locator(NullLocator())
    figure.axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def page(path, content, docs):
    """One experiment's page."""
    parts = [f"# {content['title']}", content["text"]]
    if "plots" in content:
        picture = docs / "plots" / f"{path.stem}.png"
        curves(content["plots"], picture)
        parts.append(f"![{content['title']}]({picture.relative_to(docs)})")
    for table in content["tables"]:
        parts += [f"## {table['title']}", table["text"], markdown(table["header"], table["rows"])]
    script = content.get("script", path.stem)
    (docs / f"{path.stem}.md").write_text("\n\n".join(parts) + f"\n\nMade by `benchmarks/{script}.py`.\n")


def build(results, docs, readme):
    """Write everything that follows from the results."""
    docs.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmarks", "Best of many rounds, after the answer was checked; see `benchmarks/conftest.py`."]
    summary = []
    for path in sorted(results.rglob("*.json")):
        if "tables" in (content := json.loads(path.read_text())):
            page(path, content, docs)
            continue
        info, date, rows = races(content)
        groups = grouped(rows)
        if not groups:
            continue
        name = "_".join(path.relative_to(results).with_suffix("").parts)
        parts += [f"## {name}", f"{machine(info)}\n{date}."]
        lost = losses(groups)
        parts.append("Lost:\n\n" + "\n".join(lost) if lost else "No race lost.")
        for family in dict.fromkeys(key[0] for key in groups):
            picture = docs / "plots" / f"{name}_{family}.png"
            plot(groups, family, picture)
            parts.append(f"![{family}]({picture.relative_to(docs)})")
        for key, group in groups.items():
            parts += [f"### {title(key)}", race_table(group)]
        summary += headlines(groups)
    (docs / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    if summary:
        fill(readme, summary)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    build(options.results, options.docs, options.readme)


if __name__ == "__main__":
    main()
