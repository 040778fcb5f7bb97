"""What is wrong with a stored chapter."""

import re

import nbformat

ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w")
TIMING = re.compile(r"it/s\b|\bs/it\b|Wall time|CPU times|\belapsed\b|\btook \d|\b\d+(?:\.\d+)? ?(?:ms|µs|seconds?)\b")
ANSI = re.compile(r"\x1b\[[\d;]*m")
COLUMNS = 88  # of code, that fit into the site's column at 1280 pixels
UNCHECKED = ("nbval-ignore-output", "nbval-skip", "NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "PYTEST_VALIDATE_IGNORE_OUTPUT")


def texts(output: nbformat.NotebookNode) -> list[str]:
    """Everything that one stored output says in words."""
    if output.output_type == "stream":
        return [output.text]
    if output.output_type == "error":
        return [ANSI.sub("", "\n".join(output.traceback))]
    return [text for kind, text in output.data.items() if kind == "text/plain"]


def complaints(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with a stored chapter; nothing, if all is well."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    wrong = []
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        wrong.append(f"not run from top to bottom in one go: execution counts {counts}")
    for number, cell in enumerate(code, 1):
        long = [line for line in cell.source.splitlines() if len(line) > COLUMNS]
        wrong += [f"cell {number}: a line of {len(line)} characters is cut on the site: {line[:40]}" for line in long]
        tags = cell.metadata.get("tags", [])
        figure = cell.metadata.get("mystnb", {})
        expected = ["error"] if "raises-exception" in tags else []
        if [o.output_type for o in cell.outputs if o.output_type == "error"] != expected:
            wrong.append(f"cell {number}: an error is stored, or the one announced by raises-exception is not")
        if any(o.get("name") == "stderr" for o in cell.outputs):
            wrong.append(f"cell {number}: something was written to stderr")
        if any(mark in tags or mark in cell.source for mark in UNCHECKED):
            wrong.append(f"cell {number}: keeps its output from being checked")
        if any(kind.startswith("image/") for o in cell.outputs for kind in o.get("data", {})):
            if not figure.get("image", {}).get("alt"):
                wrong.append(f"cell {number}: its figure has no alt text (metadata mystnb.image.alt)")
            if not figure.get("figure", {}).get("caption"):
                wrong.append(f"cell {number}: its figure has no caption (metadata mystnb.figure.caption)")
        for text in (text for output in cell.outputs for text in texts(output)):
            wrong += [f"cell {number}: prints the path {path}" for path in ABSOLUTE_PATH.findall(text)]
            wrong += [f"cell {number}: prints a timing, {time}" for time in TIMING.findall(text)]
    return wrong
