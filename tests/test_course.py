import html
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
)

from uss_utils import course, memory, notebooks, pages, published, publishing
from uss_utils.datasets.processes import cores

PARAMETERS = 'PRESET = "scenes"  # size\nSEED = 0  # seed\nSTEPS = None  # steps'
RECORD = "from uss_utils.teaching import record\nrecord(preset=PRESET, seed=SEED)"


def write(path, *cells, parameters=PARAMETERS):
    """A notebook of code cells, one tagged parameters; "# ..." cells are prose."""
    made = [
        new_markdown_cell(f"# {path.stem}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    made += [
        new_markdown_cell(c) if c.startswith("# ") else new_code_cell(c) for c in cells
    ]
    notebook = new_notebook(cells=made)
    notebook.metadata.kernelspec = publishing.KERNEL
    nbformat.write(notebook, path)
    return path


def named(folder, name, **kwargs):
    return write(folder / name, "pass", **kwargs)


class TestFind:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        for name in ("01_b.ipynb", "00_a.ipynb", "notes.ipynb"):
            named(tmp_path, name)
        monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path)
        return tmp_path

    def test_all_in_order(self):
        assert [p.stem for p in course.find()] == ["00_a", "01_b"]

    @pytest.mark.parametrize(
        "name", ["01_b", "01_b.ipynb", "01", "notebooks/01_b.ipynb"]
    )
    def test_one_by_name(self, name):
        assert [p.stem for p in course.find([name])] == ["01_b"]

    def test_any_by_path(self, folder):
        assert course.find([folder / "notes.ipynb"])[0].name == "notes.ipynb"

    def test_unknown_names_the_known(self):
        with pytest.raises(FileNotFoundError, match="known: 00_a, 01_b"):
            course.find(["02_c"])

    def test_no_notebooks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path / "none")
        with pytest.raises(FileNotFoundError, match="no notebooks in"):
            course.find()


class TestParameters:
    def test_words_become_values(self):
        words = [
            "SEED=3",
            "DATA_ROOT=/data/x",
            "STEPS=None",
            "NAME='3'",
            "EMPTY=",
            "A=b=c",
        ]
        assert course.parse_parameters(words) == {
            "SEED": 3,
            "DATA_ROOT": "/data/x",
            "STEPS": None,
            "NAME": "3",
            "EMPTY": "",
            "A": "b=c",
        }

    @pytest.mark.parametrize("word", ["SEED", "=3", "1A=2"])
    def test_malformed_word(self, word):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            course.parse_parameters([word])

    def test_of_a_notebook(self, tmp_path):
        path = named(tmp_path, "00_a.ipynb")
        expected = {"PRESET": "scenes", "SEED": 0, "STEPS": None}
        assert notebooks.parameters_of(path) == expected

    def test_computed_parameter_is_refused(self, tmp_path):
        path = named(tmp_path, "00_a.ipynb", parameters="A = 3\nB = A + 1")
        with pytest.raises(ValueError, match=r"00_a.ipynb.*not 'B = A \+ 1'"):
            notebooks.parameters_of(path)

    def test_not_a_notebook(self, tmp_path):
        path = tmp_path / "00_a.ipynb"
        path.write_text("{}")
        with pytest.raises(ValueError, match="is not a notebook"):
            notebooks.parameters_of(path)

    def test_each_notebook_gets_what_it_knows_and_changes_something(self, tmp_path):
        paths = [
            named(tmp_path, "00_a.ipynb"),
            named(tmp_path, "01_b.ipynb", parameters="SEED = 7\nDATA_ROOT = None"),
        ]
        jobs = notebooks.injected(
            paths, {"PRESET": "smoke", "SEED": 7, "DATA_ROOT": "x"}
        )
        assert jobs == [{"PRESET": "smoke", "SEED": 7}, {"DATA_ROOT": "x"}]

    def test_misspelt_parameter_stops_before_anything_runs(self, tmp_path):
        path = named(tmp_path, "00_a.ipynb")
        expected = (
            "unknown parameter SEEED; the notebooks know\n  00_a: PRESET, SEED, STEPS"
        )
        with pytest.raises(ValueError, match=expected):
            course.run([path], out=tmp_path / "out", parameters={"SEEED": 3})
        assert not (tmp_path / "out").exists()


@pytest.mark.notebook
class TestRun:
    @pytest.fixture(scope="class")
    def done(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("course")
        before = dict(os.environ)
        paths = [
            write(
                folder / "00_good.ipynb",
                "# Formula\n\n$x_i$, next: [fails](01_bad.ipynb)",
                "import os, sys, uss_utils.paths\n"
                "block = bytearray(200_000_000)\n"
                "import time; time.sleep(0.6)\n"
                "print(sys.executable, os.environ['HF_HUB_OFFLINE'], os.getcwd())\n"
                "print(uss_utils.paths.runs_dir())",
                RECORD,
            ),
            write(
                folder / "01_bad.ipynb",
                "def f(x):\n    return 1 / x\nprint('before')\nf(0)",
                "print('never')",
            ),
            write(folder / "02_good.ipynb", "print('still here')"),
        ]
        results = course.run(
            paths, preset="smoke", out=folder / "out", parameters={"SEED": 5}
        )
        assert dict(os.environ) == before
        return folder, results

    def test_no_failure_stops_the_others(self, done):
        assert [r.ok for r in done[1]] == [True, False, True]

    def test_kernel_is_this_python_offline_and_told_where_to_write(self, done):
        folder, (good, *_) = done
        cells = nbformat.read(good.output, as_version=4).cells
        text = "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
        executable, offline, where, runs = text.split()
        assert (executable, offline) == (sys.executable, "1")
        assert where == str(folder)
        assert runs == str(folder / "out")

    def test_record_time_and_memory(self, done):
        good = done[1][0]
        assert good.record == {"preset": "smoke", "seed": 5}
        assert 1 < good.seconds < 120
        assert 200 < good.peak_mb < 20_000

    def test_error_in_three_lines_with_the_statement(self, done):
        bad = done[1][1]
        lines = bad.error.splitlines()
        assert len(lines) <= 3
        assert lines[0] == "ZeroDivisionError: division by zero"
        assert lines[1].endswith("line 4: f(0)")
        assert "before" in bad.output.read_text()

    def test_time_limit_of_a_cell(self, tmp_path):
        path = write(tmp_path / "00_hangs.ipynb", "import time\ntime.sleep(100)")
        (hung,) = course.run([path], "smoke", tmp_path / "out", timeout=2)
        assert hung.error.startswith("CellTimeoutError")
        assert hung.seconds < 60
        assert len(hung.error.splitlines()) <= 3

    def test_results_and_leaderboard_files(self, done):
        folder = done[0] / "out" / "smoke"
        rows = json.loads((folder / "results.json").read_text())
        assert [row["notebook"] for row in rows][::2] == ["00_good", "02_good"]
        assert rows[0]["output"] == "notebooks/00_good.ipynb"
        assert json.loads((folder / "leaderboard.json").read_text()) == []
        assert "no records" in (folder / "leaderboard.md").read_text()

    def test_page_needs_no_other_file(self, done):
        text = (done[0] / "out" / "smoke" / "index.html").read_text()
        assert not re.search(r'(?:src|href)="(?!#|data:)', text)
        assert "<script" not in text
        assert text.count("<section>") == 3
        assert 'href="#01_bad"' in text and 'id="01_bad"' in text
        assert "ZeroDivisionError: division by zero" in text
        assert "<msub><mi>x</mi><mi>i</mi></msub>" in text


@pytest.mark.notebook
class TestInterrupt:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_finished_results_stay_and_no_kernel_does(self, tmp_path, jobs):
        paths = [
            write(tmp_path / "00_a.ipynb", "print(1)"),
            write(
                tmp_path / "01_b.ipynb",
                "import os, pathlib, time\n"
                "pathlib.Path('pid').write_text(str(os.getpid()))\n"
                "time.sleep(100)",
            ),
        ]
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from uss_utils import course\n"
            f"course.run({[str(p) for p in paths]}, 'smoke', "
            f"{str(tmp_path / 'out')!r}, jobs={jobs})"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        pid_file = tmp_path / "pid"
        deadline = time.monotonic() + 60
        first = tmp_path / "out" / "smoke" / "notebooks" / "00_a.ipynb"
        while not (pid_file.exists() and pid_file.read_text() and _complete(first)):
            assert time.monotonic() < deadline, "the second notebook never started"
            time.sleep(0.1)
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        assert child.returncode != 0
        assert "interrupted; 1 finished" in out
        rows = json.loads((tmp_path / "out" / "smoke" / "results.json").read_text())
        assert [row["notebook"] for row in rows] == ["00_a"]
        deadline = time.monotonic() + 20
        while _alive(int(pid_file.read_text())):
            assert time.monotonic() < deadline, "the kernel was left running"
            time.sleep(0.1)


def _alive(pid):
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _complete(notebook):
    try:
        return nbformat.read(notebook, as_version=4).cells[-1].execution_count
    except (OSError, ValueError):
        return False


@pytest.mark.notebook
class TestSideBySide:
    def test_two_meet_and_the_gathering_one_waits(self, tmp_path, monkeypatch, capsys):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        meet = (
            "import os, pathlib, time\n"
            "pathlib.Path('{0}').touch()\n"
            "while not pathlib.Path('{1}').exists():\n"
            "    time.sleep(0.1)\n"
            "assert os.environ['OMP_NUM_THREADS'] == '1'"
        )
        monkeypatch.setattr(course, "LAST", ("00_c",))
        paths = [
            write(
                tmp_path / "00_c.ipynb",
                "import json, pathlib\n"
                "for name in ('01_a', '02_b'):\n"
                "    path = pathlib.Path('out/smoke/notebooks') / f'{name}.ipynb'\n"
                "    assert json.loads(path.read_text())['cells']",
            ),
            write(tmp_path / "01_a.ipynb", meet.format("a", "b")),
            write(tmp_path / "02_b.ipynb", meet.format("b", "a"), "1 / 0"),
        ]
        found = course.run(paths, "smoke", tmp_path / "out", jobs=2, timeout=60)
        assert [(r.notebook, r.ok) for r in found] == [
            ("00_c", True),
            ("01_a", True),
            ("02_b", False),
        ]
        assert all(r.peak_mb > 20 for r in found)
        assert "2 of 3 notebooks in" in capsys.readouterr().out

    def test_as_many_as_cores_and_memory_allow(self, monkeypatch):
        assert 1 <= course.jobs_here() <= cores()
        monkeypatch.setattr(course, "MEMORY", 1e15)
        assert course.jobs_here() == 1


class TestMemory:
    def test_counts_only_what_was_started_inside(self):
        code = "block = bytearray(150_000_000); import time; time.sleep(1)"
        with memory.PeakMemory(interval=0.05) as peak:
            subprocess.run([sys.executable, "-c", code], check=True)
        assert 150 < peak.peak_mb < 300


class TestFormulas:
    def test_drawn_inline_and_displayed(self):
        text = pages.formulas("a $x^2$ b\n\n$$\n\\sum_i x_i\n$$\n")
        assert text.count("<math") == text.count("</math>") == 2
        assert "a <math" in text
        assert "<p><math" in text
        assert text.count('display="block"') == 1

    def test_code_keeps_its_dollars(self):
        source = "`$a$ and $b$`\n\n```bash\necho $HOME $PATH\n```\n"
        assert pages.formulas(source) == source

    def test_unknown_tex_stays_readable(self):
        for tex in (r"\unheard a < b", "x_1_2"):
            escaped = html.escape(tex)
            assert pages.mathml(tex) == f"<code>{escaped}</code>"

    @pytest.mark.parametrize(
        "tex", [r"\Big\lVert x \Big\rVert", r"\left\lvert x \right\rvert"]
    )
    def test_bars_of_any_size(self, tex):
        assert pages.mathml(tex).startswith("<math")

    def test_names_of_functions(self):
        drawn = pages.mathml(r"\arg\max_k f_k", block=True)
        assert ">arg<" in drawn and ">max<" in drawn

    def test_every_formula_of_the_notebooks_is_known(self):
        for path in course.find():
            text = "\n\n".join(
                cell.source
                for cell in nbformat.read(path, as_version=4).cells
                if cell.cell_type == "markdown"
            )
            code = re.findall(r"<code>.*?</code>", pages.formulas(text))
            assert code == re.findall(r"<code>.*?</code>", text), path.name


def test_solutions_stay_collapsed_on_the_page(tmp_path):
    code = "```python\nsolved = 1\n```"
    source = f"<details><summary>Solution</summary>\n\n{code}\n\n</details>"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    page = pages.notebook_html(tmp_path / "a.ipynb")
    assert page.index("<details>") < page.index("solved") < page.index("</details>")


def executed(path, tmp_path, *outputs):
    """The notebook at ``path`` as if its only code cell had given ``outputs``."""
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(
        (c for c in notebook.cells if c.cell_type == "code"), start=1
    ):
        cell.execution_count = count
        cell.metadata["papermill"] = {"duration": 3}
    notebook.cells[-1].outputs = list(outputs)
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata["papermill"] = {"input_path": str(path)}
    target = tmp_path / "executed.ipynb"
    nbformat.write(notebook, target)
    return target


def stream(text, name="stdout"):
    return new_output("stream", text=text, name=name)


class TestPublish:
    @pytest.fixture
    def source(self, tmp_path):
        return write(tmp_path / "00_a.ipynb", "# Text", "draw()")

    def test_outputs_of_the_run_and_nothing_else_of_it(self, source, tmp_path):
        before = nbformat.read(source, as_version=4)
        picture = new_output("display_data", {"image/jpeg": "aaaa"})
        widget = new_output("display_data", {publishing.WIDGET: {}, "text/plain": "w"})
        size = publishing.publish(
            source, executed(source, tmp_path, picture, widget, stream("hi\n"))
        )
        after = nbformat.read(source, as_version=4)
        assert size == source.stat().st_size
        assert [c.id for c in after.cells] == [c.id for c in before.cells]
        assert [c.source for c in after.cells] == [c.source for c in before.cells]
        assert after.cells[1].metadata == {"tags": ["parameters"]}
        assert after.cells[3].metadata == {}
        assert [o.output_type for o in after.cells[3].outputs] == [
            "display_data",
            "stream",
        ]
        assert after.cells[3].execution_count == 2
        assert set(after.metadata) == {"kernelspec", "language_info"}
        assert after.metadata.kernelspec.name == "python3"

    def test_publishing_twice_changes_nothing(self, source, tmp_path):
        done = executed(source, tmp_path, stream("hi\n"))
        publishing.publish(source, done)
        first = source.read_bytes()
        publishing.publish(source, done)
        assert source.read_bytes() == first

    def test_progress_bars_settle_and_streams_join(self, source, tmp_path):
        outputs = (stream("\r 0%\r50%\r100%\n"), stream("done\n"))
        publishing.publish(source, executed(source, tmp_path, *outputs))
        cell = nbformat.read(source, as_version=4).cells[-1]
        assert [o.text for o in cell.outputs] == ["100%\ndone\n"]

    @pytest.mark.parametrize(
        "text",
        [
            "/home/ann/course/x.py:3: UserWarning",
            "at /tmp/abc",
            "File '/usr/lib/python3/x.py'",
            "C:\\Users\\ann",
        ],
    )
    def test_absolute_path_is_refused_naming_the_cell(self, source, tmp_path, text):
        before = source.read_bytes()
        with pytest.raises(ValueError, match="cell 3: "):
            publishing.publish(source, executed(source, tmp_path, stream(text)))
        assert source.read_bytes() == before

    @pytest.mark.parametrize(
        "text",
        [
            "runs/scenes/home/x",
            "https://site.org/home/page",
            "images/s and/or 3/4",
            "<div></var><b></home>",
            "data/cache/tmp/x",
        ],
    )
    def test_relative_paths_and_links_are_fine(self, source, tmp_path, text):
        publishing.publish(source, executed(source, tmp_path, stream(text)))

    def test_too_large_names_the_cell(self, source, tmp_path):
        big = new_output("display_data", {"image/jpeg": "a" * 1_300_000})
        with pytest.raises(ValueError, match=r"1\.30 MB.*largest: cell 3 1300 kB"):
            publishing.publish(source, executed(source, tmp_path, big))

    def test_edited_since_the_run(self, source, tmp_path):
        done = executed(source, tmp_path, stream("hi"))
        write(source, "# Text", "draw(2)")
        with pytest.raises(ValueError, match="was not executed as it stands"):
            publishing.publish(source, done)


@pytest.mark.notebook
def test_refresh_rewrites_the_good_and_leaves_the_bad(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    good = write(tmp_path / "00_good.ipynb", "print('hello', PRESET)", RECORD)
    leak = write(tmp_path / "01_leak.ipynb", "import os\nprint(os.getcwd())")
    bad = write(tmp_path / "02_bad.ipynb", "1 / 0")
    before = leak.read_bytes(), bad.read_bytes()
    results = course.refresh([good, leak, bad])
    assert [r.ok for r in results] == [True, False, False]
    assert (leak.read_bytes(), bad.read_bytes()) == before
    after = nbformat.read(good, as_version=4)
    assert len(after.cells) == 4, "an injected cell was published"
    assert after.cells[2].outputs[0].text == "hello scenes\n"
    assert [c.execution_count for c in after.cells[1:]] == [1, 2, 3]
    assert "01_leak.ipynb NOT rewritten" in capsys.readouterr().out


@pytest.mark.notebook
def test_refresh_of_all_notebooks_rewrites_the_readme(tmp_path, monkeypatch):
    monkeypatch.setenv("USS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(course, "repo_root", lambda: tmp_path)
    monkeypatch.setattr(course, "weights_dir", lambda: tmp_path / "data")
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    photograph = "display({'image/jpeg': 'SGk='}, raw=True)"
    write(tmp_path / "notebooks" / "00_a.ipynb", photograph, RECORD)
    stale = tmp_path / "runs" / "scenes" / "records"
    stale.mkdir(parents=True)
    (stale / "old.json").write_text("{}")
    readme, marks = tmp_path / "README.md", publishing
    table = "| n | minutes |\n|---|---|\n| [A](notebooks/00_a.ipynb) | – |"
    readme.write_text(
        "\n".join([*marks.COURSE, *marks.SCORES, *marks.PUBLISHED]).replace(
            marks.COURSE[0], f"{marks.COURSE[0]}\n{table}"
        )
    )
    (result,) = course.refresh()
    assert result.ok, result.error
    text = readme.read_text()
    assert "| [A](notebooks/00_a.ipynb) | 0." in text and "GB of memory" in text
    assert "no records yet" in text, "an older run's records were left there"
    assert published.table() in text
    assert (tmp_path / "data" / "result.jpg").read_bytes() == b"Hi"


class TestReadme:
    def test_scores_are_replaced_between_the_marks_only(self, tmp_path):
        readme = tmp_path / "README.md"
        begin, end = publishing.SCORES
        readme.write_text(f"# Title\n{begin}\nold\n{end}\nafter\n")
        publishing.publish_scores(readme, "| new |\n")
        publishing.publish_scores(readme, "| new |\n")
        assert readme.read_text() == f"# Title\n{begin}\n| new |\n{end}\nafter\n"

    def test_missing_marks_leave_the_file(self, tmp_path):
        readme = tmp_path / "README.md"
        readme.write_text("# Title\n")
        with pytest.raises(ValueError, match="README.md lacks the lines"):
            publishing.publish_scores(readme, "| new |")
        assert readme.read_text() == "# Title\n"

    def course_table(self, folder, *rows):
        readme = folder / "README.md"
        begin, end = publishing.COURSE
        table = ["| notebook | minutes | needs |", "|---|---|---|", *rows]
        readme.write_text("\n".join(["# Title", begin, *table, "old", end, "after"]))
        return readme

    def test_minutes_come_from_a_run(self, tmp_path):
        rows = (
            "| [00 A](notebooks/00_a.ipynb) | – | |",
            "| [01 B](notebooks/01_b.ipynb) | 99 | 00 |",
        )
        readme = self.course_table(tmp_path, *rows)
        measured = {"00_a": (12.0, 900.0), "01_b": (700.0, 1850.0)}
        for _ in range(2):
            publishing.publish_minutes(readme, measured, "a machine")
            lines = readme.read_text().splitlines()
            assert lines[4] == "| [00 A](notebooks/00_a.ipynb) | 0.2 |  |"
            assert lines[5] == "| [01 B](notebooks/01_b.ipynb) | 12 | 00 |"
            assert "on a machine: 12 in all, at most 1.9 GB" in lines[7]
            assert lines[-2:] == [publishing.COURSE[1], "after"]

    def test_a_table_that_lists_other_notebooks(self, tmp_path):
        readme = self.course_table(tmp_path, "| [00 A](notebooks/00_a.ipynb) | 1 | |")
        before = readme.read_text()
        for names in ([], ["00_a", "01_b"], ["01_b"]):
            with pytest.raises(ValueError, match="notebooks differ: .*0"):
                publishing.publish_minutes(readme, dict.fromkeys(names, (1, 1)), "m")
        readme.write_text(before.replace("minutes |", "time |"))
        with pytest.raises(ValueError, match="no column 'minutes'"):
            publishing.publish_minutes(readme, {"00_a": (1, 1)}, "m")

    def test_picture_is_the_first_photograph(self, tmp_path):
        source = write(tmp_path / "00_a.ipynb", "draw()")
        chart = new_output("display_data", {"image/png": "aaaa"})
        photograph = new_output("display_data", {"image/jpeg": "SGk="})
        done = executed(source, tmp_path, chart, photograph)
        publishing.publish_picture(done, tmp_path / "result.jpg")
        assert (tmp_path / "result.jpg").read_bytes() == b"Hi"
        with pytest.raises(ValueError, match="no photograph"):
            publishing.publish_picture(source, tmp_path / "other.jpg")
