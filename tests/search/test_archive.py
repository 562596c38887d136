"""A day in the life of an archive: files come, go, are renamed and moved; nothing is forgotten, and
nothing is paid for twice."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import draw
from trsllava_extras import homes
from trsllava_extras.panel import reopen, search
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError


@pytest.fixture
def archive(tmp_path):
    """Thirty images in two classes."""
    for n in range(30):
        draw(tmp_path / "mine" / ("beach" if n % 2 else "forest") / f"{n:02d}.png", n)
    return tmp_path / "mine"


def load(folder):
    return load_dataset(str(folder), str(folder.parent / "data"))


def find(folder, encoder, words="a field", **only):
    data = str(folder.parent / "data")
    how = {"captioner": "openai:vlm", "encoder": encoder, "data_dir": data}
    return search(words, str(folder), 5, **how, **only)


def test_a_day_in_the_life_of_an_archive(archive, serve, static_encoder, capsys):
    server = serve()
    caption_dataset(load(archive), "openai:vlm")
    assert len(server.requests) == 30
    assert find(archive, static_encoder).notes == []

    # five are renamed, five come, five go
    names = sorted(archive.glob("*/*.png"))
    for n, path in enumerate(names[:5]):
        path.rename(archive / "forest" / f"renamed {n}.png")
    for path in names[5:10]:
        path.unlink()
    for n in range(5):
        draw(archive / "church" / f"new_{n}.png", 100 + n)
    found = find(archive, static_encoder)
    (note,) = found.notes
    assert note.startswith(
        "5 of 30 images are not described yet and were not searched: church/new_0.png, "
    )
    assert f"python -m trsllava_utils run {archive} -p captioner openai:vlm" in note
    assert (
        found.total == 25
        and "forest/renamed 0" in load_captions(load(archive), "openai:vlm").records
    )
    assert note in found._repr_html_() and note in repr(found)

    # only the new ones are described
    report = caption_dataset(load(archive), "openai:vlm").report
    assert (report.captioned, report.already, len(server.requests)) == (5, 25, 35)
    assert find(archive, static_encoder).notes == []

    # the archive moves: its captions and vectors do, too
    page = find(archive, static_encoder).save(archive.parent / "found.html")
    store = load(archive).derived / "embeddings"
    vectors = {p.name: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    moved = archive.parent / "pictures"
    shutil.move(archive, moved)
    capsys.readouterr()
    found = find(moved, static_encoder)
    told = capsys.readouterr().out
    assert told.startswith(f"pictures moved from {archive}; its captions and vectors are kept (")
    assert len(told.splitlines()) == 1
    assert found.total == 30 and len(server.requests) == 35
    store = load(moved).derived / "embeddings"  # nothing was encoded
    assert vectors == {p.name: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    assert not capsys.readouterr().out and find(moved, static_encoder).notes == []

    # filters say what they leave, and why nothing is left
    assert find(moved, static_encoder, where="label = 'church'").notes == [
        "5 of 30 images meet the condition"
    ]
    empty = find(moved, static_encoder, where="label = 'harbour'")
    (note,) = empty.notes
    assert note == ("no image meets the condition (0 of 30); label is one of beach, church, forest")
    assert repr(empty) == f"· {note}" and note in empty._repr_html_()

    # a saved page finds its archive, wherever that is now
    again = reopen(page, data_dir=str(archive.parent / "data"))
    before = json.loads(page.read_text().split('id="search">')[1].split("</script>")[0])
    assert again.total == 30 and before["title"] == "mine"
    shutil.rmtree(moved)
    with pytest.raises(
        InputError, match=r"found\.html searched the folder mine, which is not known"
    ):
        reopen(page, data_dir=str(archive.parent / "data"))


def test_an_archive_on_a_disk_that_can_only_be_read(archive, serve, static_encoder, monkeypatch):
    serve()
    caption_dataset(load(archive), "openai:vlm")
    find(archive, static_encoder)
    derived = load(archive).derived
    (derived / "archive.json").unlink()
    monkeypatch.setattr(homes, "write_json", lambda *_: (_ for _ in ()).throw(InputError("full")))
    assert find(archive, static_encoder).total == 30


def test_two_equal_pictures_stay_two_images(tmp_path, serve):
    server = serve()
    draw(tmp_path / "mine" / "a.png", 1)
    caption_dataset(load(tmp_path / "mine"), "openai:vlm")
    shutil.copy(tmp_path / "mine" / "a.png", tmp_path / "mine" / "b.png")
    captions = caption_dataset(load(tmp_path / "mine"), "openai:vlm")
    assert sorted(captions.records) == ["a", "b"] and len(server.requests) == 1
    assert captions.records["b"].image == "b.png"


def test_files_that_swap_their_names_keep_their_captions(tmp_path, serve):
    server = serve()
    for n, name in enumerate("ab"):
        draw(tmp_path / "mine" / f"{name}.png", n)
    before = caption_dataset(load(tmp_path / "mine"), "openai:vlm").records
    (tmp_path / "mine" / "a.png").rename(tmp_path / "mine" / "c.png")
    (tmp_path / "mine" / "b.png").rename(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "c.png").rename(tmp_path / "mine" / "b.png")
    loaded = load_captions(load(tmp_path / "mine"), "openai:vlm")
    assert not loaded.problems
    assert loaded.records["a"].variants == before["b"].variants
    again = caption_dataset(load(tmp_path / "mine"), "openai:vlm")
    assert len(server.requests) == 2 and again.records["a"].variants == before["b"].variants
    assert caption_dataset(load(tmp_path / "mine"), "openai:vlm").report.already == 2


def test_a_copy_of_an_archive_takes_nothing_from_it(archive, serve, capsys):
    server = serve()
    caption_dataset(load(archive), "openai:vlm")
    load(archive)
    copy = archive.parent / "copy"
    shutil.copytree(archive, copy)
    assert len(load_captions(load(copy), "openai:vlm").records) == 30
    assert "copy has the pictures of another one" in capsys.readouterr().out
    assert len(load_captions(load(archive), "openai:vlm").records) == 30
    assert len(server.requests) == 30
    other = archive.parent / "other"
    for n in range(20):
        draw(other / f"{n}.png", 500 + n)
    assert not load(other).derived.exists() and not capsys.readouterr().out


def test_other_settings_do_not_share_records(tmp_path, serve):
    """A picture under another name keeps what these settings made of it, and no others."""
    server = serve()
    draw(tmp_path / "mine" / "a.png", 1)
    caption_dataset(load(tmp_path / "mine"), "openai:vlm", Settings(seed=1))
    (tmp_path / "mine" / "a.png").rename(tmp_path / "mine" / "b.png")
    caption_dataset(load(tmp_path / "mine"), "openai:vlm", Settings(seed=2))
    assert len(server.requests) == 2


def test_annotations_without_pictures_say_what_is_missing(tmp_path, static_encoder):
    """The first message is the one that helps; it led to a notebook that led nowhere."""
    (tmp_path / "mine").mkdir()
    rows = "filename,caption\na.jpg,a plane\nb.jpg,two boats\n"
    (tmp_path / "mine" / "captions.csv").write_text(rows)
    for captioner in ("", "pixels", "openai:vlm"):
        how = {"captioner": captioner, "encoder": static_encoder, "data_dir": str(tmp_path / "d")}
        with pytest.raises(MissingError, match="2 images are annotated, none of their files is in"):
            search("a plane", str(tmp_path / "mine"), **how)
