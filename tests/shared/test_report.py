import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from shared.report import build_report, compare_runs
from shared.report.pictures import BYTES

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>&'


class Page(HTMLParser):
    """A page's tags with their attributes, and its visible text with single spaces."""

    def __init__(self, path):
        super().__init__()
        self.html, self.tags, self.words = path.read_text(encoding="utf-8"), [], []
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.lasttag != "style":
            self.words.append(data)

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


def picture(file, size=(16, 16)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(file)
    return file


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def stage(verb="fit", **changes):
    record = {
        "verb": verb,
        "status": "done",
        "started": "2026-11-22T04:46:00+00:00",
        "seconds": 161.4,
        "command": f"lightning run projects/p/cli.py {verb} --lr 0.1",
    }
    return record | {"inputs": {}, "outputs": [], "summary": {}} | changes


def manifest(*stages, **changes):
    return {
        "project": "toy",
        "run": "first",
        "created": "2026-11-22T04:46:00+00:00",
        "commit": "abc123",
        "device": "CPU",
        "seed": 7,
        "stages": stages,
    } | changes


def make_run(root, name="first", lr=0.1, scale=1.0, **changes):
    run = root / "toy" / name
    write(run / "config.yaml", f"run: {name}\nmodel: {{lr: {lr}, name: net}}\ntrainer: {{default_root_dir: {run}}}\n")
    write(
        run / "manifest.json",
        manifest(stage(summary={"val/loss": 0.123456}), stage("test", summary={"test/fd": 1.0812345, "rule": "below 1e-2"}), run=name, **changes),
    )
    lines = [f"{step // 10},{step},{scale / (step + 1)},{scale * 2 / (step + 1) if step % 10 == 0 else ''}" for step in range(50)]
    write(run / "fit" / "metrics.csv", "epoch,step,train/loss,val/loss\n" + "\n".join(lines) + "\n")
    write(run / "test" / "metrics.csv", "epoch,step,test/fd,test/ssim\n5,50,1.0812345,0.912345678\n")
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_page_shows_the_run(run):
    path = build_report(run)
    page = Page(path)
    assert path == run / "report.html"
    for shown in (
        "toy",
        "first",
        "done",
        "22 November 2026, 04:46 UTC",
        "abc123",
        "CPU",
        "5 min 23 s",
        "took 2 min 41 s",
        "lightning run projects/p/cli.py fit --lr 0.1",
    ):
        assert shown in page.text
    assert "test/fd1.081" in page.text.replace(" ", "")  # the headline, with four significant digits
    assert page.text.count("test/fd") == 1  # not again in the stage's table
    assert "test/ssim0.9123" in page.text.replace("\n", "")
    assert "model: {lr: 0.1, name: net}" in page.text
    assert page.html.count("<svg") == 1  # train/loss and val/loss share axes
    assert not [file for file in run.iterdir() if file.name.startswith(".")]  # nothing temporary is left


def test_page_is_one_file_without_scripts_or_requests(run):
    picture(run / "artefacts" / "fit" / "samples-000010.png")
    page = Page(build_report(run))
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("img", "src"))
    assert "http" not in page.html.replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)", page.html)
    assert "default-src 'none'" in page.html
    assert "prefers-color-scheme: dark" in page.html


def test_text_from_files_is_escaped(tmp_path):
    run = tmp_path / "toy" / "evil"
    evil_stage = stage("fit", command=EVIL, status=EVIL, inputs={EVIL: EVIL}, outputs=[EVIL, "../../secret", "/etc/hostname"], summary={EVIL: EVIL})
    write(run / "manifest.json", manifest(evil_stage, stage(EVIL), run=EVIL, project=EVIL, commit=EVIL, device={EVIL: 1}, versions={EVIL: EVIL}))
    write(run / "config.yaml", EVIL)
    cell = '"' + EVIL.replace('"', '""') + '"'
    write(run / "fit" / "metrics.csv", f"step,{cell},$x_{{1}}$\n0,1,1\n1,2,2\n")
    write(run / "artefacts" / "fit" / "table.csv", f"{cell},b\n1,{cell}\n")
    write(run / "results.json", {"title": EVIL, "claim": EVIL, "columns": [EVIL], "rows": [{EVIL: EVIL}], "paper": [{EVIL: 1}], "device": EVIL})
    picture(run / "artefacts" / "fit" / '"><b onclick=alert(1)>.png')
    for path in (build_report(run), compare_runs([run, make_run(tmp_path)], tmp_path / "all.html")):
        page = Page(path)
        assert not {"script", "b onclick=alert(1)"} & {tag for tag, _ in page.tags}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert set(page.attributes("img", "src")) <= {source for source in page.attributes("img", "src") if source.startswith("data:")}
        assert EVIL in page.text  # and it is readable
        assert "$x_{1}$" in page.text
    links = Page(run / "report.html").attributes("a", "href")
    assert not [link for link in links if "secret" in link or "hostname" in link]  # nothing outside the run folder


def png_bytes():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


STRANGE = manifest(3, {"verb": None, "seconds": 10**400, "started": 5}, versions=4, created=[1])
SURROGATES = '{"run": "\\ud800", "stages": [{"verb": "fit", "outputs": ["\\ud800", "\\u0000"]}]}'
BROKEN = [  # file, its content (None: there is none), what the page says
    ("manifest.json", None, "manifest.json cannot be read (No such file or directory): what it holds is not shown."),
    ("manifest.json", '{"project": "toy", "sta', "manifest.json cannot be read (Unterminated string"),
    ("manifest.json", "[1, 2]", "manifest.json is not a JSON object"),
    ("manifest.json", STRANGE, "None unknown"),
    ("manifest.json", SURROGATES, "missing"),
    ("manifest.json", manifest(stage(status="running", seconds=None)), "its end is not recorded"),
    ("config.yaml", None, "config.yaml cannot be read (No such file or directory): the settings are not shown."),
    ("config.yaml", "a: [1", "a: [1"),
    ("fit/metrics.csv", None, "val/loss"),
    ("fit/metrics.csv", "", "fit/metrics.csv holds no values."),
    ("fit/metrics.csv", "step,train/loss\n", "fit/metrics.csv holds no values."),
    ("fit/metrics.csv", bytes(range(256)) * 4, "fit/metrics.csv holds no values."),
    ("fit/metrics.csv", "step,a\n1,2\n2,x\n3,4\n", "fit/metrics.csv: 1 cell is not a number and left out."),
    ("fit/metrics.csv", "step,a\n1,2\n2,3\n3,4", "fit/metrics.csv: the last line is cut off and left out."),
    ("fit/metrics.csv", "step,a\n1,2\n2,nan\n3,inf\n4,1\n5,nan\n", "a: 3 of 5 values are nan or infinite, the first at step 2."),
    ("fit/metrics.csv", "step,a\n1,nan\n2,nan\n", "a: 2 of 2 values are nan or infinite, the first at step 1."),
    ("artefacts/fit/t.csv", "", "fit/t.csv is empty."),
    ("artefacts/fit/t.csv", "a\n" + "x" * 200_000, "fit/t.csv cannot be read to its end (field larger than field limit"),
    ("artefacts/fit/p.png", "not a picture", "p.png cannot be read (UnidentifiedImageError)"),
    ("artefacts/fit/p.png", png_bytes()[:45], "p.png cannot be read"),
    ("results.json", '{"rows": [1', "results.json cannot be read (Expecting"),
    ("results.json", b"\xff\xfe\x00", "results.json cannot be read"),
    ("results.json", {"title": None, "rows": [1, {"a": [1, 2]}], "columns": 5, "paper": "x"}, "[1, 2]"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN, ids=[f"{name}-{index}" for index, (name, _, _) in enumerate(BROKEN)])
def test_what_cannot_be_shown_is_said(run, name, content, said):
    (run / name).unlink(missing_ok=True)
    if isinstance(content, bytes):
        write(run / name, "")
        (run / name).write_bytes(content)
    elif content is not None:
        write(run / name, content)
    assert said in Page(build_report(run)).text
    compare_runs([run], run.parent / "comparison.html")


def test_empty_run_folder_still_has_a_page(tmp_path):
    run = tmp_path / "toy" / "nothing"
    run.mkdir(parents=True)
    page = Page(build_report(run))
    assert "toy" in page.text
    assert "nothing unknown" in page.text


def test_missing_run_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run folder .*absent: give a folder that `lightning run` made"):
        build_report(tmp_path / "absent")


def test_long_curves_stay_small_on_the_page(run):
    write(run / "fit" / "metrics.csv", "step,a\n" + "".join(f"{i},{i % 17}\n" for i in range(30_000)))
    assert build_report(run).stat().st_size < 100_000


def test_last_eight_pictures_of_a_series_are_inlined_byte_for_byte(run):
    files = [picture(run / "artefacts" / "fit" / f"samples-{step:06d}.png", size=(step, 16)) for step in range(100, 1100, 100)]
    page = Page(build_report(run))
    assert "samples the last 8 of 10" in page.text
    assert [int(step) for step in re.findall(r"<div>\s*<img.*?>\s*step (\d+)", page.html)] == list(range(300, 1100, 100))
    inlined = [base64.b64decode(source.partition(",")[2]) for source in page.attributes("img", "src")]
    assert inlined == [file.read_bytes() for file in files[2:]]
    assert page.html.count('class="small"') == 0  # wider than 256 pixels


def test_small_pictures_are_enlarged_with_visible_pixels(run):
    picture(run / "artefacts" / "fit" / "target.png", size=(16, 16))
    page = Page(build_report(run))
    assert page.attributes("img", "class") == ["small"]
    assert page.attributes("img", "style") == ["width: 192px"]


@pytest.mark.parametrize(("mode", "levels", "channels"), [("RGB", 256, (3,)), ("RGBA", 256, (4,)), ("P", 256, ()), ("I;16", 65536, ())])
def test_large_pictures_are_scaled_down(run, mode, levels, channels):
    noise = np.random.default_rng(0).integers(0, levels, (1280, 1600, *channels), dtype=np.uint16 if levels > 256 else np.uint8)
    image = Image.fromarray(noise) if mode != "P" else Image.fromarray(noise).convert("P")
    assert image.mode == mode
    file = run / "artefacts" / "fit" / "large.png"
    file.parent.mkdir(parents=True)
    image.save(file, compress_level=0)
    assert file.stat().st_size > BYTES
    source = Page(build_report(run)).attributes("img", "src")[0]
    content = base64.b64decode(source.partition(",")[2])
    shown = Image.open(io.BytesIO(content))
    assert len(content) <= BYTES
    assert shown.width / shown.height == pytest.approx(1.25, abs=0.01)
    assert np.asarray(shown).mean() == pytest.approx(np.asarray(image.convert(shown.mode)).mean(), rel=0.02)  # not clipped


def test_pictures_with_too_many_pixels_are_not_decoded(run):
    file = run / "artefacts" / "fit" / "bomb.png"
    file.parent.mkdir(parents=True)
    Image.new("1", (9000, 9000)).save(file)
    page = Page(build_report(run))
    assert "bomb.png 9000 x 9000 pixels are too many to show" in page.text
    assert not page.attributes("img", "src")


def test_tables_are_rounded_limited_and_shown_once(run):
    folder = run / "artefacts" / "test"
    write(folder / "scores.csv", "name,score,count\n" + "".join(f"item {i},{i + 0.123456},{i}\n" for i in range(60)))
    write(folder / "scores.json", "[]")
    write(folder / "other.json", "{}")
    page = Page(build_report(run))
    assert "scores the first 50 of 60 rows" in page.text
    assert "item 49" in page.text
    assert "item 50" not in page.text
    assert "49.12" in page.text
    assert "49.123456" not in page.text
    links = page.attributes("a", "href")
    assert "artefacts/test/scores.csv" in links
    assert "artefacts/test/other.json" in links
    assert "artefacts/test/scores.json" not in links


def test_other_artefacts_are_linked_and_full_folders_summed_up(tmp_path):
    run = make_run(tmp_path)
    write(run / "artefacts" / "fit" / "odd name#1.npz", "12345")
    for index in range(20):
        write(run / "pipeline" / "unet" / f"{index}.safetensors", "1234567890")
    outputs = ["checkpoints/gone.ckpt", *[f"pipeline/unet/{index}.safetensors" for index in range(20)]]
    write(run / "manifest.json", manifest(stage(outputs=outputs)))
    page = Page(build_report(run))
    files = [link for link in page.attributes("a", "href") if not link.startswith("#")]
    assert files == ["artefacts/fit/odd%20name%231.npz", "pipeline/unet"]
    assert all((run / unquote(link)).exists() for link in files)
    assert "odd name#1.npz 5 B" in page.text
    assert "pipeline/unet/ 20 files, 200 B" in page.text
    assert "checkpoints/gone.ckpt missing" in page.text


def test_results_stand_beside_the_papers(run):
    rows = [{"sampler": "DDIM", "steps": 20, "asr": "0.98 ± 0.01"}, {"sampler": "DDPM", "steps": 1000, "asr": 0.0123456}]
    paper = [
        {"sampler": "DDPM", "steps": 1000, "asr": 0.0, "table": "Table 3"},
        {"sampler": "DDIM", "steps": 20, "asr": 1.0, "table": "Table 3"},
        {"sampler": "DPM", "asr": 1.0},
    ]
    results = {
        "title": "Samplers",
        "claim": "ODE beats SDE.",
        "columns": ["sampler", "steps", "asr"],
        "rows": rows,
        "seeds": [0, 1],
        "minutes": 7.5,
        "paper": paper,
    }
    write(run / "results.json", results)
    page = Page(build_report(run))
    assert "Samplers ODE beats SDE. seeds 0, 1 · minutes 7.5" in page.text
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.html[page.html.index("Samplers") :])[:25]
    assert [cells[i : i + 5] for i in range(0, 25, 5)] == [
        ["ours", "DDIM", "20", "0.98 ± 0.01", ""],
        ["paper", "DDIM", "20", "1", "Table 3"],
        ["ours", "DDPM", "1000", "0.01235", ""],
        ["paper", "DDPM", "1000", "0", "Table 3"],
        ["paper", "DPM", "", "1", ""],
    ]


def test_comparison_shows_what_differs(tmp_path):
    runs = [make_run(tmp_path, "one", lr=0.1), make_run(tmp_path, "two", lr=0.2, scale=5.0, commit="fff999")]
    picture(runs[0] / "artefacts" / "fit" / "samples-000010.png")
    picture(runs[0] / "artefacts" / "fit" / "samples-000020.png")
    for run in runs:
        write(
            run / "results.json",
            {"title": "Claim", "columns": ["setting", "fd"], "rows": [{"setting": "tiny", "fd": 1.5}], "paper": [{"setting": "tiny", "fd": 1.4}]},
        )
    build_report(runs[0])
    page = Page(compare_runs(runs, tmp_path / "pages" / "comparison.html"))
    assert "model.lr0.10.2" in page.text.replace(" ", "")
    assert "model.name" not in page.text  # equal in both
    assert "default_root_dir" not in page.text  # the run's own folder
    assert "Commitabc123fff999" in page.text.replace(" ", "")
    assert "testtest/ssim0.91230.9123" in page.text.replace(" ", "")
    assert "fittrain/loss0.020.1" in page.text.replace(" ", "")
    assert page.html.count("<svg") == 2  # train/loss and val/loss, both runs in each
    assert len(page.attributes("img", "src")) == 1
    assert "one step 20" in page.text
    assert "none two" in page.text
    assert "onetiny1.5twotiny1.5papertiny1.4" in page.text.replace(" ", "")  # the paper's row once
    assert "../toy/one/report.html" in page.attributes("a", "href")
    assert "../toy/two/report.html" not in page.attributes("a", "href")  # not there


def test_comparison_tells_runs_of_one_name_apart_and_shows_a_run_once(tmp_path):
    runs = [make_run(tmp_path / "a", "same", project="alpha"), make_run(tmp_path / "b", "same", project="beta")]
    page = Page(compare_runs([*runs, runs[0]], tmp_path / "comparison.html"))
    assert "2 runs side by side" in page.text
    assert "alpha/same" in page.text
    assert "beta/same" in page.text


def test_comparison_refuses_what_it_cannot_do(run):
    with pytest.raises(ValueError, match="no runs to compare: give at least one run folder"):
        compare_runs([], run / "x.html")
    with pytest.raises(FileNotFoundError, match="no run folder"):
        compare_runs([run / "absent"], run / "x.html")
    with pytest.raises(IsADirectoryError, match=r"is a folder: give the file to write, such as .*comparison\.html"):
        compare_runs([run], run.parent)
    assert (run / "config.yaml").is_file()


def test_import_is_light():
    heavy = "{'torch', 'lightning', 'matplotlib', 'jinja2', 'numpy', 'PIL', 'yaml'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys, shared.report; print({heavy})"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_verb_that_ran_often_has_its_history_counted_and_a_measurement_heads_the_page(run):
    repeated = [stage("predict", status=status, summary={"predict/files": 3}) for status in ("done", "failed", "done", "failed")]
    write(run / "manifest.json", manifest(stage("test", summary={"test/auroc": 0.75, "test/eer": 0.2}), *repeated))
    text = Page(build_report(run)).text
    assert "earlier: 2 done, 1 failed" in text
    assert "predict failed" in text
    assert text.index("0.75") < text.index("took")  # above the first section


def test_settings_are_compared_within_a_project_and_a_value_named_like_the_run_is_shown(tmp_path):
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "net", lr=0.2)
    (second / "config.yaml").write_text((second / "config.yaml").read_text().replace("name: net", "name: net, kind: net"))
    other = make_run(tmp_path / "b", "third", project="other")
    text = Page(compare_runs([first, second, other], tmp_path / "page.html")).text
    assert "model.kind" in text
    assert "(the run)" not in text
    assert "different projects" in Page(compare_runs([first, other], tmp_path / "two.html")).text
