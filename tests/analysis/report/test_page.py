"""The report: its files, its page in a real browser, and reports of few records."""

import csv
import re
import shutil
from dataclasses import replace

import pytest
from grids import BACKBONES, diverged, flat, grid, peaked, record, save
from PIL import Image

from blockwise.analysis.report.page import write_report
from blockwise.cli import main
from blockwise.errors import InputError
from blockwise.results import read_records
from blockwise.results.record import BackboneEntry

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FEW = BACKBONES[:2]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    save(grid(peaked, backbones=BACKBONES[:11], seeds=(0, 1)), folder / "results")
    return write_report(read_records(folder / "results"), folder / "report")


def test_every_part_is_there_and_as_files(page):
    text = page.read_text()
    names = set(re.findall(r'<figure id="([^"]+)"', text))
    kinds = "accuracy-by-block depth trainable seconds selection curves confusion class-gains".split()
    assert names == {*(f"{kind}-flowers-segment" for kind in kinds), "gain-by-quarter", "critical-differences"}
    for name in names:
        assert (page.parent / "figures" / f"{name}.svg").stat().st_size > 1000
        with Image.open(page.parent / "figures" / f"{name}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 5
    tables = "claims summary gains quarters tests ranks selection scopes export provenance".split()
    files = {f"{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")}
    assert {path.name for path in (page.parent / "tables").iterdir()} == files
    assert {*tables} <= set(re.findall(r'<h3 id="([^"]+)"', text))
    assert re.findall(r'href="((?:tables|figures)/[^"]+)"', text)
    assert all((page.parent / link).exists() for link in re.findall(r'href="((?:tables|figures)/[^"]+)"', text))


def test_the_page_loads_nothing(page):
    text = page.read_text()
    loaded = re.findall(r'(?:src|href|xlink:href)="([^"]+)"', text)
    assert all(link.startswith(("#", "data:", "tables/", "figures/")) for link in loaded)
    assert not re.search(r"@import|url\((?!#|['\"]?data:|\")", text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_in_a_browser_tables_sort_and_filter(page, scheme):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 390, "height": 844})
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready=yes]")
        column = "table.summary tbody td:nth-child(8)"
        blocks = [int(text) for text in tab.locator(column).all_inner_texts()]
        assert len(blocks) == 11
        heading = tab.locator("table.summary thead th", has_text=re.compile("^block$"))
        heading.click()
        tab.wait_for_selector("th[aria-sort=ascending]")
        assert [int(text) for text in tab.locator(column).all_inner_texts()] == sorted(blocks), (
            "as numbers: 9 before 10"
        )
        heading.click()
        tab.wait_for_selector("th[aria-sort=descending]")
        assert [int(text) for text in tab.locator(column).all_inner_texts()] == sorted(blocks, reverse=True)
        tab.locator("#summary ~ .wide input[type=search]").first.fill("net03")
        assert tab.locator("table.summary tbody tr").count() == 1
        assert tab.evaluate("document.documentElement.scrollWidth") == 390, "the page itself does not scroll sideways"
        ink, paper = tab.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
        assert (brightness[0] < brightness[1]) == (scheme == "light")
        drawn = tab.evaluate("getComputedStyle(document.querySelector('figure svg g[id^=text_] use')).fill")
        assert drawn == ink
        browser.close()
    assert complaints == []


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([record("head", 0.5)], id="one cell"),
        pytest.param([record("3", 0.5)], id="no baseline"),
        pytest.param(grid(flat, backbones=FEW, seeds=(0,)), id="one seed"),
        pytest.param(
            [record("head", 0.5), record("3", 0.5, status="diverged")],
            id="nothing but a failure",
        ),
    ],
)
def test_of_little_it_says_that_it_is_little(tmp_path, records):
    text = write_report(records, tmp_path).read_text()
    assert text.count("not-enough-data") >= 4
    assert "There is not enough data for ranks" in text
    assert not (tmp_path / "tables" / "ranks.csv").exists()


def one_sweep(**options):
    return grid(peaked, backbones=FEW[:1], seeds=(0,), **options)


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(one_sweep(num_blocks=3), id="no block in a quarter"),
        pytest.param(one_sweep(num_blocks=1), id="one block", marks=pytest.mark.slow),
        pytest.param([r for r in one_sweep() if r.cell.scope != "head"], id="no head"),
        pytest.param([r for r in one_sweep() if r.cell.scope != "full"], id="no full", marks=pytest.mark.slow),
        pytest.param([diverged(r) for r in one_sweep()], id="all diverged"),
    ],
)
def test_what_a_grid_lacks_its_report_lacks(tmp_path, records):
    assert "Best block and baselines" in write_report(records, tmp_path).read_text()


@pytest.mark.slow
def test_damaged_files_beside_a_record_are_left_out(tmp_path):
    save(one_sweep(), tmp_path / "results")
    damaged = [path for path in sorted((tmp_path / "results").rglob("*")) if path.suffix in (".csv", ".safetensors")]
    for number, path in enumerate(damaged):
        path.write_text(["", "epoch,val_top1\n0,x\n", "a,b\n1,2\n", "\0\0"][number % 4])
    text = write_report(read_records(tmp_path / "results"), tmp_path / "report").read_text()
    assert "Confusion matrix of the best cell" not in text


@pytest.mark.slow
def test_settings_tell_sweeps_of_one_name_apart(tmp_path):
    again = one_sweep(num_blocks=1)
    for one in again:
        one["settings"]["freeze"] = {"norm": "eval"}
    write_report([*one_sweep(num_blocks=1), *again], tmp_path)
    lines = (tmp_path / "tables" / "summary.md").read_text().splitlines()
    assert "settings" in lines[0]
    assert len({line.split("|")[4] for line in lines[2:]}) == 2


@pytest.mark.slow
def test_names_may_hold_what_matplotlib_and_latex_read(tmp_path):
    name = "$x_{$ a^b~c<d> 5%"
    write_report([replace(one, backbone=BackboneEntry(name=name)) for one in one_sweep(num_blocks=1)], tmp_path)
    latex = (tmp_path / "tables" / "summary.tex").read_text()
    assert r"\$x\_\{\$ a\textasciicircum{}b\textasciitilde{}c\textless{}d\textgreater{} 5\%" in latex


def test_names_are_only_names(tmp_path):
    text = write_report(
        [record("3", 0.5, backbone="<script>alert(1)</script>"), record("head", 0.4)], tmp_path
    ).read_text()
    assert "<script>alert" not in text


HOSTILE = "../a/b|c <script> \x1b[31m =cmd() ${oc.env:HOME} " + 300 * "x"


@pytest.mark.slow
def test_hostile_names_cost_no_report_and_are_only_names(tmp_path):
    records = [
        replace(one, data=replace(one.data, name=name), backbone=BackboneEntry(name=name), partition=partition)
        for name in (HOSTILE, "=" + HOSTILE, "a/b", "a_b")
        for one in one_sweep(num_blocks=2)
        for partition in (replace(one.partition, name="p/q"),)
    ]
    page = write_report([replace(one, settings={**one.settings, "x": HOSTILE}) for one in records], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "tables", "figures"}
    names = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    assert sum(name.startswith("accuracy-by-block-a_b") for name in names) == 4  # a/b and a_b, svg and png
    assert "<script> " not in page.read_text(encoding="utf-8")
    for path in (tmp_path / "out" / "tables").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text
        if path.suffix == ".md":
            assert "|c <script>" not in text
    with (tmp_path / "out" / "tables" / "summary.csv").open(encoding="utf-8") as file:
        assert not [row for row in csv.DictReader(file) if row["data"].startswith("=")]


@pytest.mark.slow
def test_the_same_records_give_the_same_files(tmp_path):
    save(one_sweep(), tmp_path / "results")
    for name in ("one", "two"):
        write_report(read_records(tmp_path / "results"), tmp_path / name)
    drawn = list((tmp_path / "one" / "figures").glob("*.svg"))
    assert len(drawn) > 5
    for path in drawn:
        assert (tmp_path / "two" / "figures" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_commands(tmp_path, capsys):
    save(grid(peaked, backbones=FEW), tmp_path / "results")
    main(["report", str(tmp_path / "results"), "-o", str(tmp_path / "page")])
    assert str(tmp_path / "page" / "index.html") in capsys.readouterr().out
    main(["claims", str(tmp_path / "results")])
    assert capsys.readouterr().out.count("not enough data") == 4
    main(["claims", str(tmp_path / "results"), "--json"])
    assert '"verdict": "not enough data"' in capsys.readouterr().out


def test_where_it_cannot_write_it_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        write_report([record("head", 0.5)], tmp_path / "file")
