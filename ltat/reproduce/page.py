"""The page of a target, in Markdown: nothing stands on it that is not in its tree."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]
CHECKPOINTS = {
    "best": "Best checkpoint",
    "last": "Last checkpoint",
    "raw-best": "Best checkpoint, no average",
    "raw-last": "Last checkpoint, no average",
    "teacher": "The teacher",
}
READING = "Each cell: ours, with its 95 % interval{published}. The interval is {kinds}."
BESIDE = " / published{difference}; a published figure with a question mark is doubtful and no target"
GAIN = (
    "Each row minus the baseline with the same seed, with the 95 % interval of the difference: Student's t over the "
    "seeds, or Newcombe's over the images where there is one. A star: the interval excludes zero."
)
ORDER = (
    "For every two rows whose published figures differ beyond doubt: the pair agrees if our difference has the "
    "published sign, contradicts the paper if the 95 % interval of our difference is wholly on the other side, and is "
    "open otherwise. tau is Kendall's: (agreeing pairs - pairs of the other sign) / pairs."
)


def page(tree: Tree) -> str:
    """The whole page."""
    lines = [*heading(tree), *data_lines(tree)]
    for checkpoint in tree["checkpoints"]:
        lines += ["", f"## {CHECKPOINTS[checkpoint]}", *tables(tree, checkpoint)]
    return "\n".join([*lines, *gains(tree), *orderings(tree), *doubts(tree), *runs(tree)]) + "\n"


def heading(tree: Tree) -> Iterator[str]:
    """What the page is of, and how to read it."""
    done = [run["state"] == "finished" for row in tree["rows"] for run in row["runs"]]
    yield f"# {tree['target']}: {tree['title']}"
    yield ""
    yield f"{tree['source']}. {sum(done)} of {len(done)} runs are finished."
    yield f"Scale `{tree['scale']}`: {tree['scale_remark']}."
    if not tree["comparable"]:
        yield "The figures are not those of the paper's setting and are not compared with them."
    if tree["note"]:
        yield tree["note"]
    yield ""
    kinds = sorted({each["ours"]["kind"] for each in figures(tree) if each["ours"]})
    difference = " (ours minus published)" if tree["comparable"] else ""
    beside = BESIDE.format(difference=difference) if any(each["published"] for each in figures(tree)) else ""
    yield READING.format(published=beside, kinds=" or ".join(kinds) or "that of the runs to come")


def all_of(row: Tree, checkpoint: str) -> list[Tree]:
    """The figures of a row at a checkpoint."""
    return list(row["figures"][checkpoint].values())


def figures(tree: Tree) -> Iterator[Tree]:
    """Every figure of the tree."""
    for row in tree["rows"]:
        for own in row["figures"].values():
            yield from own.values()


def data_lines(tree: Tree) -> Iterator[str]:
    """The data that the runs are trained on, with their numbers of images."""
    yield ""
    for data in tree["data"]:
        place = f"{data['group']}: " if data["group"] else ""
        name = data["name"] if data["name"] == data["of"] else f"{data['name']}, in the place of {data['of']}"
        counts = data["counts"]
        yield (
            f"- {place}data {name}: {sum(counts):,} training images of {len(counts)} classes "
            f"({max(counts):,} to {min(counts):,}), {data['test']:,} test images"
        )


def tables(tree: Tree, checkpoint: str) -> Iterator[str]:
    """A table for each group of rows; a row without any figure stands among the runs alone."""
    shown = [row for row in tree["rows"] if any(each["ours"] or each["published"] for each in all_of(row, checkpoint))]
    if not shown:
        yield from ("", "No row has a figure yet.")
    for group in dict.fromkeys(row["group"] for row in shown):
        if group:
            yield ""
            yield f"### {group}"
        yield ""
        yield table_row(["method", "seeds", *tree["columns"]])
        yield table_row(["---", "---:", *["---"] * len(tree["columns"])])
        for row in shown:
            if row["group"] == group:
                own = row["figures"][checkpoint]
                yield table_row([row["label"], seeds(own), *(cell(own[name]) for name in tree["columns"])])


def table_row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def seeds(own: Mapping[str, Tree]) -> str:
    """The number of seeds whose figures a row shows."""
    return str(max((len(figure["verdicts"]) for figure in own.values()), default=0))


def cell(figure: Tree) -> str:
    """Ours / published (difference)."""
    ours, published = figure["ours"], figure["published"]
    if ours is None and published is None:
        return "–"
    shown = "–" if ours is None else f"{ours['value']:.2f} ({ours['low']:.1f} to {ours['high']:.1f})"
    if published is None:
        return shown
    printed = f"{published:.2f}{'?' if figure['doubtful'] else ''}"
    difference = "" if figure["difference"] is None else f" ({figure['difference']:+.2f})"
    return f"{shown} / {printed}{difference}"


def gains(tree: Tree) -> Iterator[str]:
    """What every row gains over the baseline."""
    if not tree["gains"]:
        return
    yield from ("", f"## Gains over {tree['baseline']}", "", GAIN)
    found = {(each["checkpoint"], each["group"], each["row"], each["column"]): each for each in tree["gains"]}
    for checkpoint in dict.fromkeys(each["checkpoint"] for each in tree["gains"]):
        yield from ("", f"### {CHECKPOINTS[checkpoint]}", "")
        yield table_row(["method", "seeds", *tree["columns"]])
        yield table_row(["---", "---:", *["---"] * len(tree["columns"])])
        for group, row in dict.fromkeys((group, row) for at, group, row, _ in found if at == checkpoint):
            own = [found.get((checkpoint, group, row, column)) for column in tree["columns"]]
            numbers = [len(each["seeds"]) for each in own if each is not None]
            label = ", ".join(filter(None, (group, row)))
            yield table_row([label, str(max(numbers)), *map(gain, own)])


def gain(found: Tree | None) -> str:
    """A gain with its interval; a star where the interval excludes zero."""
    if found is None:
        return "–"
    own = found["gain"]
    star = "*" if own["low"] > 0 or own["high"] < 0 else ""
    return f"{own['value']:+.2f}{star} ({own['low']:+.1f} to {own['high']:+.1f})"


def orderings(tree: Tree) -> Iterator[str]:
    """Whether the published order holds."""
    if not tree["orderings"]:
        return
    yield from ("", "## The order of the rows", "", ORDER, "")
    yield table_row(["checkpoint", "group", "figure", "pairs", "agree", "contradict", "tau", "the order"])
    yield table_row(["---", "---", "---", "---:", "---:", "---:", "---:", "---"])
    for each in tree["orderings"]:
        pairs = each["pairs"]
        agree, against = (sum(pair[word] for pair in pairs) for word in ("agrees", "contradicts"))
        place = [each["checkpoint"], each["group"] or "–", each["column"]]
        yield table_row([*place, str(len(pairs)), str(agree), str(against), f"{each['tau']:+.2f}", each["verdict"]])
    yield from contradictions(tree)


def contradictions(tree: Tree) -> Iterator[str]:
    """A line for each pair that contradicts the paper."""
    found = [(each, pair) for each in tree["orderings"] for pair in each["pairs"] if pair["contradicts"]]
    if found:
        yield ""
    for each, pair in found:
        ours, place = pair["ours"], ", ".join(filter(None, (each["checkpoint"], each["group"], each["column"])))
        yield (
            f"- {place}: {pair['above']} is {pair['published']:.2f} above {pair['below']} in print and "
            f"{ours['value']:+.2f} ({ours['low']:+.1f} to {ours['high']:+.1f}) here"
        )


def doubts(tree: Tree) -> Iterator[str]:
    """What is doubtful about published figures."""
    found = [(row, doubt) for row in tree["rows"] for doubt in row["doubts"]]
    if found:
        yield from ("", "## Doubts about published figures", "")
    for row, doubt in found:
        yield f"- {', '.join(filter(None, (row['group'], row['label'])))}: {doubt}"


def runs(tree: Tree) -> Iterator[str]:
    """Every run, and why some are missing."""
    yield from ("", "## Runs", "")
    yield table_row(["run", "state", "million image passes", "settings", "commit", "machine", "device"])
    yield table_row(["---", "---", "---:", "---", "---", "---", "---"])
    for run in {run["name"]: run for row in tree["rows"] for run in row["runs"]}.values():
        said = run["state"] + (f": {run['error']}" if run["error"] else "")
        made = [(run["config_sha256"] or "–")[:12], run["commit"] or "–", run["machine"] or "–"]
        yield table_row(
            [run["name"], said, f"{run['image_passes'] / 1e6:.2f}", *made, run["gpu"] or run["device"] or "–"]
        )
    for row in tree["rows"]:
        if row["refused"]:
            yield f"\n{', '.join(filter(None, (row['group'], row['label'])))} is not run: {row['refused']}"
