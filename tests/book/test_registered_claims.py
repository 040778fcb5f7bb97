"""The chapter on registered claims: what it prints is what the records give, and its cell for readers' runs works."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from scipy import stats

import advdim as ad
from advdim.analysis import claims
from advdim.experiments import grids

CHAPTER = Path(__file__).parents[2] / "book" / "11_registered_claims.ipynb"
CODE = [cell for cell in nbformat.read(CHAPTER, 4).cells if cell.cell_type == "code"]
ROW = re.compile(
    r"^      (\S.*?) {2,}(?:(-?\d+\.\d\d) (\[.*?\]|\(no interval\)) +)?(\d+) of (\d+) seeds +([a-z ]+)", re.M
)


def printed():
    """(claim, statistic, series) to (mean, interval, seeds, planned, verdict), as the chapter's tables print them."""
    found = {}
    text = "".join(
        o.text for cell in CODE for o in cell.outputs if o.output_type == "stream" and "show(" in cell.source
    )
    for claim in re.split(r"(?m)^(?=\d[a-i]\. )", text)[1:]:
        for block in re.split(r"(?m)^(?=   \S)", claim)[1:]:
            statistic = block.splitlines()[0].strip().partition(": is it ")
            for row in ROW.finditer(block):
                found[claim[:2], statistic[0], statistic[2].rstrip("?"), row[1]] = (*row.groups()[1:5], row[6].strip())
    return found


def test_the_tables_are_what_the_records_give():
    """Every statistic of every run that has begun, with its mean, interval, seeds and verdict."""
    shown = printed()
    found = claims.findings(claims.of_experiments(claims.recorded_runs()))
    begun = {f.claim for f in found if f.whole}
    assert begun
    expected = {}
    for f in found:
        if f.claim in begun:
            mean, _, interval = str(f.interval).partition(" ") if f.interval else (None, "", None)
            rule = "" if f.rule.judge is None else f.rule.words
            row = (mean, interval, str(f.seeds), str(f.planned), f.verdict)
            expected[f.claim, f.statistic, rule, f.about] = row
    assert shown == expected
    text = "".join(o.text for cell in CODE for o in cell.outputs if o.output_type == "stream")
    for claim in set(claims.CLAIMS) - begun:
        assert f"{claim}. {claims.CLAIMS[claim]}\n      not run\n" in text


def test_run_1_by_plain_calls():
    """Exponents of E||g||_1, intervals and verdicts of 1a and 1b, without the package's statistics."""
    points = claims.of_experiments(claims.recorded_runs())["usual-training"]
    shown = printed()
    for series, (network, resize) in {
        "dilated, copied": ("conv_dilated", "copy"),
        "dilated, interpolated": ("conv_dilated", "bilinear"),
        "strided, copied": ("conv_strided", "copy"),
        "dilated, natural": ("conv_dilated", "area"),
    }.items():
        by_seed = {}
        for point in points:
            images, size = point["spec"]["images"], point["spec"]["images"]["size"]
            if (point["spec"]["network"]["name"], images["resize"]) == (network, resize) and size in (32, 64, 128):
                by_seed.setdefault(images["seed"], {})[size] = point["metrics"]["test"]["l1"]
        slopes = [
            np.polyfit(np.log(np.square(sorted(own))), np.log([own[size] for size in sorted(own)]), 1)[0]
            for own in by_seed.values()
            if len(own) == 3
        ]
        for claim, rule in (("1a", "above 0"), ("1b", "1/2")):
            mean, interval, seeds, _, verdict = shown[claim, "exponent of E||g||_1", rule, series]
            assert int(seeds) == len(slopes)
            if len(slopes) < 3:
                assert verdict == ("not decided" if slopes else "not run")
                continue
            half = stats.t.ppf(1 - 0.05 / 8, len(slopes) - 1) * np.std(slopes, ddof=1) / np.sqrt(len(slopes))
            low, high = np.mean(slopes) - half, np.mean(slopes) + half
            assert float(mean) == pytest.approx(np.mean(slopes), abs=0.0051)
            assert interval == f"[{low:.2f}, {high:.2f}]"
            above = "supported" if low > 0 else "contradicted" if high < 0 else "open"
            equal = "supported" if low >= 0.4 and high <= 0.6 else "open" if low <= 0.5 <= high else "contradicted"
            assert verdict == (above if claim == "1a" else equal)


def test_the_cell_for_readers_runs(tmp_path, monkeypatch, capsys):
    """Off, it does nothing; at a tiny scale it measures, draws, and prints the fits of both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setenv("ADVDIM_DEVICE", "cpu")
    (cell,) = [cell.source for cell in CODE if "RUN = None" in cell.source]
    setup = CODE[1].source.replace("figures.style()", "")
    helpers = next(cell.source for cell in CODE if "def by_size" in cell.source)
    usual = [p for p in grids.GRIDS["usual-training"]("quick", "digits") if p.network.name == "conv_strided"][:3]
    tiny = [
        replace(
            p,
            network=replace(p.network, depth=2, width=2),
            images=replace(p.images, n=10),
            train=20,
            by_epoch=10,
            pgd_images=2,
            recipe=replace(p.recipe, epochs=1),
            at_epochs=(1,),
        )
        for p in usual
    ]
    monkeypatch.setitem(grids.GRIDS, "usual-training", lambda scale, data: tiny)
    names = {}
    exec(setup + "\n" + helpers.partition("fig, axes")[0], names)
    exec(cell, names)
    assert capsys.readouterr().out.endswith("RUN is None: nothing is measured\n")
    assert not (tmp_path / "runs").exists()
    exec(cell.replace("RUN = None", 'RUN = "quick"'), names)
    said = capsys.readouterr()
    assert "3/3" in said.err, "the progress bar"
    fits = re.findall(r"^(recorded|yours) +strided, copied +exponent (.*), (\d+) seeds", said.out, re.M)
    recorded = claims.cells.slopes(names["SERIES"]["strided, copied"], claims.usual_training.GRADIENT)
    mine = claims.cells.slopes(
        claims.cells.by_label(names["own_runs"])["strided, copied"], names["usual_training"].GRADIENT
    )
    assert fits == [
        (whose, str(ad.analysis.mean_interval(list(slopes.values()))), str(len(slopes)))
        for whose, slopes in (("recorded", recorded), ("yours", mine))
    ]
    assert len(mine) == 1
    assert len(plt.gca().get_lines()) > 3
    plt.close("all")
