"""Recipes: commands parse, presets exist, numbers were read somewhere."""

import shlex

import pytest
from accelerate.commands.launch import launch_command_parser

from tests.test_documents import check_names, parsed
from uss_utils import methods, paper_recipes, published
from uss_utils.paper_recipes import by_name, recipes

ROWS = recipes()
NAMES = [row.name for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_every_command_parses(row):
    for command in row.commands():
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "uss_utils"], command
        check_names(*parsed(words[3:]))


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_accelerate_starts_the_same_training(row):
    parser = launch_command_parser()
    for machines in (1, 2):
        command = row.launch_command(machines=machines).replace("RANK", "1")
        given = parser.parse_args(shlex.split(command)[2:])
        assert given.module and given.training_script == "uss_utils"
        assert given.num_processes == machines * row.processes
        assert (given.num_machines or 1) == machines
        check_names(*parsed(given.training_script_args))
        assert row.train_command().split()[3:] == given.training_script_args


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_numbers_are_those_that_were_read(row):
    """And no recipe lacks a source, of its score or of why it has none."""
    assert row.source and row.authors
    assert (row.expected is None) == bool(row.no_score)
    if row.expected is not None:
        assert row.expected in published.published(row.method, row.benchmark)
        assert row.expected.backbone == row.backbone
    assert (row.hours is None) == (row.hours_source == "")


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_processes_and_parts_make_up_the_batch(row):
    whole = row.config.batch_size
    assert whole % row.processes == 0
    assert row.batch.startswith(f"{whole} = {row.processes} processes x ")
    # What the authors' own files say stands in front of their hardware.
    assert row.authors.split()[0] == str(whole)


def test_names_are_unique_and_what_comes_first_is_a_recipe():
    assert len(set(NAMES)) == len(NAMES)
    for row in ROWS:
        if row.first:
            first = by_name(row.first)
            model = f"runs/{first.preset}/models/{first.method}-seed0.safetensors"
            assert any(setting.endswith(model) for setting in row.settings)
            assert row.commands().index(first.train_command()) < row.commands().index(
                row.train_command()
            )


def test_every_published_preset_has_a_recipe():
    variants = {"stego": ("-older", "-default", "-10-3")}  # other settings of the same
    course = ("smoke", "scenes", "camvid")
    for name in {row.method for row in ROWS}:
        known = {row.preset for row in ROWS if row.method == name}
        for preset in methods.load(name).PRESETS:
            if preset.startswith(course) or preset.endswith(variants.get(name, "?")):
                continue
            assert preset in known, (name, preset)


def test_disk_is_counted_from_the_settings():
    parts = by_name("stego cocostuff27-vits8").disk()
    assert parts["images"] == 20e9
    assert parts["features"] == 5 * 49_629 * 384 * 28 * 28 * 2
    assert set(by_name("maskcontrast voc-resnet50").disk()) == {"images"}
    assert by_name("hsg voc-resnet50").disk()["images"] == 23.4e9


def test_the_table_shows_scores_sources_and_what_nobody_measured():
    text = paper_recipes.table()
    assert text.count("\n| ") == len(ROWS) + 2  # and two lines of head
    assert "clusters 56.9 / 28.2; linear probe 76.1 / 41.1" in text
    assert "about a day on one A6000" in text and "not measured" in text
    assert published.not_found()["ppap"] in text
    short = paper_recipes.table(recipes("hsg"), sources=False)
    assert "42.2" in short and "source" not in short


def test_one_recipe_can_be_followed_line_by_line():
    text = paper_recipes.text(by_name("primaps cityscapes27-vitb8 on stego"))
    assert text.index("train stego") < text.index("train primaps")
    assert "--num_machines 2" in text and "login needed" in text


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no recipes of 'kmeans'"):
        recipes("kmeans")
    with pytest.raises(ValueError, match="unknown recipe 'stego'"):
        by_name("stego")
