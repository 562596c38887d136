"""A stranger's archive: its images, tables, captions, ``derived/`` and saved pages act nowhere
outside their folder, and damage in them is told. See docs/security.md; files beside rasters are in
tests/datasets/test_rasters.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import sentence_transformers
import transformers

from tests.conftest import captions as made_up
from tests.conftest import captions_file, draw, nested
from trsllava_extras.gallery.gallery import Gallery
from trsllava_extras.metadata import load_metadata
from trsllava_extras.panel import reopen, search
from trsllava_extras.results import read_results, summary
from trsllava_utils.__main__ import main
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.encoders import unit_vectors
from trsllava_utils.files import (
    InputError,
    MissingError,
    append_lines,
    escaped,
    json_line,
    write_json,
    write_text,
)
from trsllava_utils.search import search as core_search
from trsllava_utils.vectors import vector_path

OUTSIDE = pytest.mark.fault("A stranger's archive")
DAMAGE = pytest.mark.fault("Silent damage")


@pytest.fixture
def archive(tmp_path, static_encoder):
    """Four described pictures that were searched once; the folder, and that of what is made."""
    for number in range(4):
        draw(tmp_path / "mine" / f"{number}.png", number)
    made = tmp_path / "data"
    caption_dataset(load_dataset(str(tmp_path / "mine"), str(made)), "pixels")
    search("a field", str(tmp_path / "mine"), data_dir=str(made), encoder=static_encoder)
    return tmp_path / "mine", made


def derived_of(made: Path) -> Path:
    return next(made.glob("mine-??????/derived"))


# — outside the folder —


@OUTSIDE
@pytest.mark.parametrize("what", ["jsonl", "json", "lock", "safetensors", "folder"])
def test_nothing_is_written_through_a_link_below_derived(archive, tmp_path, static_encoder, what):
    folder, made = archive
    derived, secret = derived_of(made), tmp_path / "secret"
    if what == "folder":
        secret.mkdir()
        shutil.rmtree(derived / "captions")
        (derived / "captions").symlink_to(secret)
    else:
        secret.write_text("mine")
        for path in [*derived.rglob(f"*.{what}"), *derived.rglob(f".*.{what}")]:
            path.unlink()
            path.symlink_to(secret)
    draw(folder / "new.png", 9)
    said = []
    for step in (
        lambda: caption_dataset(load_dataset(str(folder), str(made)), "pixels"),
        lambda: search("a boat", str(folder), data_dir=str(made), encoder=static_encoder),
    ):
        try:
            step()
        except (InputError, MissingError) as error:
            said.append(str(error))
    assert any("below derived/ nothing is written through one" in sentence for sentence in said)
    if what == "folder":
        assert not list(secret.iterdir())
    else:
        assert secret.read_text() == "mine"


@OUTSIDE
def test_what_the_user_names_may_be_a_link(archive, tmp_path, static_encoder):
    """A saved page, and the folder derived itself, which may lie on another disk."""
    folder, made = archive
    (tmp_path / "disk").mkdir()
    (tmp_path / "page.html").symlink_to(tmp_path / "disk" / "page.html")
    found = search("a boat", str(folder), data_dir=str(made), encoder=static_encoder)
    found.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "disk" / "page.html").is_file()
    derived = derived_of(made)
    shutil.move(derived, tmp_path / "disk" / "derived")
    derived.symlink_to(tmp_path / "disk" / "derived")
    write_text(derived / "captions" / "x.txt", "new")
    append_lines(derived / "captions" / "y.jsonl", [{"a": 1}])
    assert (tmp_path / "disk" / "derived" / "captions" / "x.txt").read_text() == "new"


@OUTSIDE
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("encoder", "openai:text-embedding-3-small"),
        ("encoder", "all-MiniLM-L6-v2 + openai:x"),
        ("encoder", "someone/model-of-the-hub"),
        ("encoder", "/etc"),
        ("clip", "someone/clip-of-the-hub"),
        ("captioner", "openai:gpt-4.1"),
        ("query_captioner", "transformers:someone/vlm"),
    ],
)
def test_a_page_names_only_models_that_were_used_here(archive, static_encoder, setting, value):
    folder, made = archive
    how = {"data_dir": str(made), "encoder": static_encoder}
    page = search("a boat", str(folder), **how).save(folder.parent / "found.html")
    assert reopen(page, data_dir=str(made)).sources.encoder == static_encoder
    text = page.read_text()
    start = text.index('<script type="application/json" id="search">') + 44
    end = text.index("</script>", start)
    told = json.loads(text[start:end]) | {setting: value}
    page.write_text(text[:start] + json.dumps(told) + text[end:])
    with pytest.raises(
        InputError, match=rf"names the {setting} .* if you trust it, reopen\(page, "
    ):
        reopen(page, data_dir=str(made))
    if setting == "encoder":  # the user's own choice comes first
        assert reopen(page, data_dir=str(made), encoder=static_encoder).query.text == "a boat"


@OUTSIDE
def test_a_server_in_a_page_is_named_by_the_user_even_if_it_was_used(archive, static_encoder):
    """Vectors on disk may come with the archive too."""
    folder, made = archive
    name = "openai:text-embedding-3-small"
    known = vector_path(static_encoder, "float32", derived_of(made))
    shutil.copy(known, vector_path(name, "float32", derived_of(made)))
    page = search("a boat", str(folder), data_dir=str(made), encoder=static_encoder)
    page = page.save(folder.parent / "found.html")
    text = page.read_text().replace(json.dumps(static_encoder), json.dumps(name))
    page.write_text(text)
    with pytest.raises(InputError, match="names the encoder 'openai:text-embedding-3-small'"):
        reopen(page, data_dir=str(made))


@OUTSIDE
def test_no_code_that_comes_with_a_model_is_run(monkeypatch):
    asked = []

    def loaded(*_: object, **how: object) -> None:
        asked.append(how)
        raise OSError("not here")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", loaded)
    for name in ("AutoModel", "AutoProcessor", "AutoConfig"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", loaded)
    with pytest.raises(MissingError):
        unit_vectors(["a"], "someone/encoder", "query")
    from trsllava_extras import clip, local_vlm

    with pytest.raises(MissingError):
        clip.ClipEncoder("/no/such/clip").encode(["a"], "text")
    with pytest.raises(OSError, match="not here"):
        local_vlm.AutoConfig.from_pretrained("x", **local_vlm.NO_CODE)
    assert len(asked) >= 2 and all(how["trust_remote_code"] is False for how in asked)


TABLES = {
    "metadata.csv": "image,site\n0.png,secret\n",
    "places.geojson": '{"type": "FeatureCollection", "features": []}',
    "captions.jsonl": '{"image": "0.png", "caption": "a secret"}\n',
    "dataset.json": nested([("0.png", "test", ["a secret"])]),
    "rsrt.jsonl": '{"image": "0.png", "model": "x", "variants": [{"caption": "a secret"}]}\n',
    "0.txt": "a secret caption",
    "item.json": '{"type": "Feature", "stac_version": "1.0.0", "id": "secret"}',
}


@OUTSIDE
@pytest.mark.parametrize("name", TABLES)
def test_tables_and_captions_that_are_links_out_of_the_folder_are_left_out(tmp_path, name):
    draw(tmp_path / "mine" / "0.png")
    (tmp_path / name).write_text(TABLES[name])
    (tmp_path / "mine" / name).symlink_to(tmp_path / name)
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    table, problems = load_metadata(dataset)
    assert f"{name} is a link that leads out of the folder; it was left out" in dataset.problems
    assert not problems and dataset.captions.empty and "site" not in table
    with pytest.raises(MissingError):
        load_captions(dataset, "rsrt")
    (tmp_path / "mine" / name).unlink()
    (tmp_path / "mine" / "here").mkdir()  # a link inside the folder is followed
    (tmp_path / "mine" / "here" / name).write_text(TABLES[name])
    (tmp_path / "mine" / name).symlink_to(tmp_path / "mine" / "here" / name)
    assert not [
        p for p in load_dataset(str(tmp_path / "mine"), str(tmp_path)).problems if "link" in p
    ]


@OUTSIDE
@pytest.mark.parametrize("name", ["test/metadata.jsonl", "data/test.parquet", "txtclasses_x/a.txt"])
def test_what_lies_behind_a_linked_folder_is_left_out(tmp_path, name):
    draw(tmp_path / "mine" / "0.png")
    behind = tmp_path / "elsewhere" / Path(name).name
    behind.parent.mkdir()
    if behind.suffix == ".parquet":
        pd.DataFrame({"filename": ["0.png"], "caption": ["a secret"]}).to_parquet(behind)
    else:
        behind.write_text("0.png" if behind.suffix == ".txt" else
                          '{"file_name": "0.png", "text": "a secret"}')  # fmt: skip
    folder = tmp_path / "mine" / Path(name).parent
    folder.symlink_to(behind.parent)
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path))
    assert dataset.captions.empty and dataset.images["label"].tolist() == [""]
    assert f"{folder.name} is a link that leads out" in " ".join(dataset.problems)
    folder.unlink()
    behind.parent.rename(folder)  # in the folder itself it is read
    dataset = load_dataset(str(tmp_path / "mine"), str(tmp_path), "all")
    assert len(dataset.captions) or dataset.images["label"].tolist() == ["a"]


@OUTSIDE
@pytest.mark.parametrize("odd", ["\x1b[31m", "\x07", "\r", "\u202e", "\u2066", "\x9b", "\u2028"])
def test_control_characters_reach_no_terminal(tmp_path, static_encoder, capsys, odd):
    draw(tmp_path / "mine" / f"a{odd}b.png")
    words = {"image": f"a{odd}b.png", "caption": f"a boat {odd} here"}
    (tmp_path / "c.jsonl").write_text(json_line(words), encoding="utf-8")
    how = ["-p", "data_dir", str(tmp_path), "-p", "encoder", static_encoder]
    how += ["-p", "captioner", f"file:{tmp_path / 'c.jsonl'}"]
    assert main(["search", str(tmp_path / "mine"), f"a boat{odd}", *how]) == 0
    assert main(["search", str(tmp_path / "mine"), "a boat", "--where", f"x{odd} = 1", *how]) == 1
    assert main(["search", str(tmp_path / f"no{odd}ne"), "a boat", *how]) == 1
    shown = capsys.readouterr()
    assert not {odd[0]} & {*shown.out.replace("\r\n", "\n"), *shown.err}
    assert escaped(odd[0]) in shown.out.replace("\\r", "\\u000d") and escaped(odd[0]) in shown.err
    how = {"data_dir": str(tmp_path), "encoder": static_encoder}
    how["captioner"] = f"file:{tmp_path / 'c.jsonl'}"
    for found in (core_search, search):
        assert odd[0] not in repr(found("a boat", str(tmp_path / "mine"), **how))
    captions = load_captions(load_dataset(str(tmp_path / "mine")), how["captioner"])
    (record,) = captions.records.values()
    c0 = odd[0] < " " and odd != "\r"
    assert (odd[0] in record.variants[0].caption) == (not c0 and odd != "\x9b")


def test_lines_of_a_terminal_may_begin_anew():
    assert escaped("a\tb\nc – é 图 🛰") == "a\tb\nc – é 图 🛰"
    assert escaped("a\x1bb\rc\u202ed") == "a\\u001bb\\u000dc\\u202ed"


# — damage —


@DAMAGE
@pytest.mark.parametrize("how", ["a letter", "exchanged", "another image's", "by hand"])
def test_captions_that_changed_on_disk_are_told_and_used(archive, static_encoder, capsys, how):
    folder, made = archive
    dataset = load_dataset(str(folder), str(made))
    assert not load_captions(dataset, "pixels").problems
    path = captions_file(dataset, "pixels").path
    values = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(len(value["seal"]) == 8 for value in values)
    if how == "a letter":
        values[0]["variants"][0]["caption"] += "x"
    elif how == "exchanged":
        first, second = (value["variants"] for value in values[:2])
        values[0]["variants"], values[1]["variants"] = second, first
    elif how == "another image's":
        values[0]["image_sha256"] = values[1]["image_sha256"]
    else:
        values[0]["variants"] = [{"caption": "my own words"}]
    path.write_text("".join(map(json_line, values)))
    captions = load_captions(load_dataset(str(folder), str(made)), "pixels")
    changed = 2 if how == "exchanged" else 1
    told = f"{changed} images have captions that were edited by hand, or damaged"
    assert any(told in problem for problem in captions.problems)
    if how == "by hand":
        own = values[0]["image"].removesuffix(".png")
        assert captions.records[own].variants[0].caption == "my own words"
    words = ["search", str(folder), "a boat", "-p", "data_dir", str(made)]
    assert main([*words, "-p", "encoder", static_encoder]) == 0
    assert told in capsys.readouterr().out
    assert main(["gallery", str(made / "g"), "--add", str(folder), *words[3:],
                 "-p", "encoder", static_encoder]) == 0  # fmt: skip
    assert told in capsys.readouterr().out


@DAMAGE
@pytest.mark.parametrize("harm", ["middle", "last", "copied"])
def test_a_partition_that_is_lost_or_there_twice_is_named(static_encoder, tmp_path, harm):
    gallery = Gallery(str(tmp_path / "g"), static_encoder)
    gallery.add(made_up(90), texts_each=90)
    gallery.embed()
    names = gallery.store.names
    assert len(names) >= 3
    rows = [Path(gallery.url) / f"{name}.parquet" for name in names]
    lost = {"middle": rows[1], "last": rows[-1]}.get(harm)
    if lost:
        content = lost.read_bytes()
        lost.unlink()
    else:
        shutil.copy(rows[0], rows[0].with_name(rows[0].name.replace("000000", f"{len(names):06d}")))
    for call in (lambda: gallery.find("a boat"), gallery.embed):
        with pytest.raises(InputError, match="is gone" if lost else "are the same; remove one"):
            call()
    if lost:
        lost.write_bytes(content)
        assert len(gallery.find("a boat", 90)) == 90


@DAMAGE
def test_places_and_days_that_are_none_are_counted(tmp_path):
    for name in "abcde":
        draw(tmp_path / "mine" / f"{name}.png")
    points = {"a": ["east", "48.1"], "b": [691000, 5334000], "c": [None, 48.1], "d": [11.5, 48.1]}
    features = [
        {
            "type": "Feature",
            "properties": {"image": f"{name}.png", "taken": f"2021-02-{day}"},
            "geometry": {"type": "Point", "coordinates": place},
        }
        for (name, place), day in zip(points.items(), (27, 28, 30, 28), strict=True)
    ]
    features.append({"type": "Feature", "properties": {"image": "e.png"}, "geometry": None})
    path = tmp_path / "mine" / "places.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    table, problems = load_metadata(load_dataset(str(tmp_path / "mine"), str(tmp_path)))
    told = " ".join(problems)
    assert table["geometry"].notna().sum() == 1 and table["lat"]["d"] == pytest.approx(48.1)
    assert "3 places are not in degrees, longitude before latitude" in told
    assert "column taken: 1 values are not dates (write 2021-06-01), such as '2021-02-30'" in told
    assert table["taken"].dropna().tolist() == ["2021-02-27", "2021-02-28", "2021-02-28"]


RESULT = {"dataset": "x", "split": "test", "captioner": "c", "encoder": "e", "inputs": "i"}
SIX = {"R@1": 1.0, "R@5": 2.0, "R@10": 3.0, "MedR": 4.0}
RESULT |= {"n_images": 3, "chance": {"t2i": SIX, "i2t": SIX, "mR": 2.0}}
RESULT |= {"methods": {"max": {"t2i": SIX, "i2t": SIX, "mR": 2.0, "interval": {"mR": [1, 3]}}}}


@DAMAGE
@pytest.mark.parametrize(
    "other",
    [
        {"methods": [1]},
        {"methods": {"max": 3}},
        {"methods": {"max": {"mR": 2.0}}},
        {"methods": {"max": {"t2i": SIX, "i2t": SIX, "mR": 2.0, "interval": {"mR": "wide"}}}},
        {"chance": "none"},
        {"n_images": "many"},
        {"dataset": None},
    ],
)
def test_results_with_a_valid_seal_and_other_content_are_left_out(tmp_path, other):
    path = tmp_path / "x" / "derived" / "results" / "a.json"
    write_json(path, RESULT)
    assert read_results(path)["n_images"] == 3 and len(summary(tmp_path)[0]) == 2
    write_json(path, {**RESULT, **other})
    assert read_results(path) == {}
    table, problems = summary(tmp_path)
    assert table.empty and "a.json is damaged" in problems[0]


@DAMAGE
@pytest.mark.parametrize("harm", ["folder", "circle", "other JSON"])
def test_what_is_no_file_in_an_artefacts_place_is_a_sentence(archive, static_encoder, harm):
    folder, made = archive
    for path in [p for p in derived_of(made).rglob("*") if p.is_file()]:
        copy = made.parent / f"copy{abs(hash(path))}"
        shutil.copytree(made, copy, symlinks=True)
        mine = derived_of(copy) / path.relative_to(derived_of(made))
        mine.unlink()
        if harm == "folder":
            mine.mkdir()
        elif harm == "circle":
            mine.symlink_to(mine.name)
        else:
            write_json(mine, {"rows": {"a": 1}, "identity": [1], "root": 7, "sha256": 5})
        for step in (
            lambda copy=copy: load_metadata(load_dataset(str(folder), str(copy))),
            lambda copy=copy: caption_dataset(load_dataset(str(folder), str(copy)), "pixels"),
            lambda copy=copy: search(
                "a boat", str(folder), data_dir=str(copy), encoder=static_encoder
            ),
        ):
            try:
                step()
            except (InputError, MissingError) as error:
                assert "\n" not in str(error)


@DAMAGE
def test_a_run_says_at_once_what_a_later_notebook_would_miss(archive, capsys):
    folder, made = archive
    words = ["run", str(folder), "-p", "data_dir", str(made)]
    for more, told in (
        (["-p", "methods", "[nope]"], "unknown method 'nope'"),
        (["--to", "03", "-p", "method", "max+max"], "max cannot follow max"),
        ([], "no reference captions"),
        (
            ["--from", "02", "--to", "03", "-p", "captioner", "openai:x"],
            "no captions by 'openai:x'",
        ),
    ):
        assert main([*words, *more]) == 1
        shown = capsys.readouterr()
        assert told in shown.err and "00_dataset" not in shown.out
