"""Artefacts that are damaged, edited, removed, or in the way of a full disk: the outcome is that of
an undamaged run, by value, or one sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import rasterio

from tests.conftest import captions as made_up
from tests.conftest import draw, scenes
from tests.faults.conftest import RawServer, caption, completion, good
from trsllava_extras import figures
from trsllava_extras.gallery.gallery import Gallery
from trsllava_extras.metadata import load_metadata
from trsllava_extras.results import csv_text, read_results, summary, write_results
from trsllava_utils import files
from trsllava_utils.__main__ import main
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import (
    InputError,
    MissingError,
    append_lines,
    json_line,
    read_lines,
    write_json,
    write_text,
)
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.recall import metrics
from trsllava_utils.records import read_records
from trsllava_utils.sources import Sources

# — damage —


def write_lines(path: Path, values: Iterable[dict]) -> None:
    path.write_text("".join(map(json_line, values)), encoding="utf-8")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def removed(path: Path) -> None:
    path.unlink()


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 9)


DAMAGE = (truncated, emptied, overwritten, one_byte, removed, longer)


def damaged(*more):
    return pytest.mark.parametrize("harm", [*DAMAGE, *more], ids=lambda harm: harm.__name__)


def unsealed(path: Path) -> None:
    """Valid JSON, and nothing says any more that it is whole."""
    value = json.loads(path.read_text())
    value.pop("fingerprint")
    path.write_text(json.dumps(value))


def edited(**values: object):
    """Valid JSON, other content."""

    def harm(path: Path) -> None:
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, **values}))

    harm.__name__ = f"edited {'+'.join(values)}"
    return harm


# — captions —

CAPTIONS = pytest.mark.fault("Captions on disk")


@CAPTIONS
@damaged(
    edited(identity={"captioner": "other"}),
    edited(identity=None),
    edited(prompt="other"),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("null"),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_text('{"identity": ' + "9" * 5000 + "}"),
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_damaged_manifest_costs_no_caption(chat, tmp_path, harm, times):
    before, _ = chat(good, images=4)
    (file,) = before.files
    for _ in range(times):
        harm(file.manifest_path)
        loaded = load_captions(scenes(tmp_path, 4), "openai:vlm") if times == 2 else before
        assert loaded.records == before.records
        after, server = chat(good, images=4)
        assert after.records == before.records and server.requests == []
        assert file.manifest()["identity"]["captioner"] == "openai:vlm"
    assert not list(tmp_path.rglob("*.jsonl.*superseded"))


@CAPTIONS
@pytest.mark.parametrize("line", [0, 1, 3])
@pytest.mark.parametrize(
    "broken", [b'{"image": "sce', b"\xff\xfe\x00", b"[" * 9999, b"7" * 5000, b'{"image": 7}', b"\0"]
)
def test_a_damaged_line_costs_its_image_alone(chat, line, broken):
    before, _ = chat(good, images=4)
    (file,) = before.files
    lines = file.path.read_bytes().split(b"\n")
    lines[line] = broken
    file.path.write_bytes(b"\n".join(lines))
    after, server = chat(good, images=4)
    assert after.records == before.records and len(server.requests) == 1
    assert f"line {line + 1}" in after.problems[0]


@CAPTIONS
@damaged()
def test_images_set_aside_stay_aside_or_are_asked_again(chat, harm):
    def respond(handler, request, n):
        handler.send(completion("no")) if n == 0 else good(handler, request)

    before, _ = chat(respond, images=3, attempts=1)
    harm(before.files[0].rejected_path)
    after, server = chat(good, images=3, attempts=1)
    assert len(after.records) + after.report.aside == 3 and len(server.requests) <= 1


ODD = ["\u2028", "\u2029", "😀", "é", "\\", "\x85", "\x0b", "\x1e", "\0"]


@CAPTIONS
@pytest.mark.parametrize("odd", ODD)
def test_odd_characters_in_replies(chat, odd):
    """They are kept as they are, control characters of C0 are left out, those of C1 refused; an
    image set aside with one is not asked about again."""

    def respond(handler, request, n):
        text = json.loads(caption(request))
        text["variants"][0]["caption"] += f" Odd{odd}mark."
        words = json.dumps(text) if n else f"no {odd} JSON"
        handler.send(completion(words))

    before, _ = chat(respond, images=3, attempts=1)
    refused, kept = 2 * (odd == "\x85"), "" if odd in "\x0b\x1e\0" else odd
    assert before.report.rejected["control characters"] == refused
    assert before.report.captioned == 2 - refused and before.report.rejected["not JSON"] == 1
    texts = [r.variants[0].caption for r in before.records.values()]
    assert all(f"Odd{kept}mark" in text for text in texts)
    after, server = chat(good, images=3, attempts=1)
    assert server.requests == [] and after.records == before.records
    assert after.report.aside == 1 + refused
    for path in (before.files[0].path, before.files[0].rejected_path):
        for line in path.read_text(encoding="utf-8").splitlines():
            json.loads(line)


@CAPTIONS
@pytest.mark.parametrize("at", [0, 1])
def test_a_reply_that_cannot_be_written_costs_no_other(chat, at):
    def respond(handler, request, n):
        handler.send(completion("\ud800")) if n == at else good(handler, request)

    captions, _ = chat(respond, images=4, concurrency=4)
    assert captions.report.captioned == 4


@CAPTIONS
@pytest.mark.parametrize(
    "settings", ["0" * 16, [1], {}, "a/b", "x" * 300, "a\0b", "\ud800", 7, None]
)
def test_lines_with_odd_settings(chat, settings):
    before, _ = chat(good, images=3)
    path = before.files[0].path
    lines = [value for _, value, _ in read_lines(path)]
    write_lines(path, [lines[0] | {"settings": settings}, *lines[1:]])
    after, server = chat(good, images=3)
    assert len(after.records) == 3 and len(server.requests) <= 1


@CAPTIONS
@pytest.mark.parametrize("attempts", ["x", None, [1], -1, 10**30, 2.5])
def test_images_without_an_answer_and_an_odd_count(chat, attempts):
    def respond(handler, request, n):
        handler.send({"error": "no"}, 500) if n in (0, *range(5, 99)) else good(handler, request)

    before, _ = chat(good, images=3)
    (name, record), *_ = before.records.items()
    entry = {"image": record.image, "reason": "no answer", "attempts": attempts}
    entry |= {"image_sha256": record.image_sha256, "settings": record.settings}
    append_lines(before.files[0].rejected_path, [entry])
    path = before.files[0].path
    write_lines(path, [v for _, v, _ in read_lines(path) if v["image"] != record.image])
    after, _ = chat(good, images=3)
    assert len(after.records) + after.report.aside == 3 and name


@CAPTIONS
def test_a_picture_that_changed_is_described_anew_and_no_line_is_lost(chat, tmp_path, monkeypatch):
    """Whatever is in the file stays, a damaged line too; a sentence says so."""
    before, _ = chat(good, images=4)
    (file,) = before.files
    torn = file.path.read_bytes().split(b"\n")[1][:-20]
    damaged = file.path.read_bytes().replace(torn, torn[:-20] + b"\xff")
    file.path.write_bytes(damaged)
    other = json.loads(damaged.split(b"\n")[0])["image"]
    draw(tmp_path / "scenes" / other, 77, size=32)
    ds = load_dataset(str(tmp_path / "scenes"), str(tmp_path))
    # nobody answers: what is loaded says that a record is stale
    settings = Settings(variants=1, timeout=0.2)
    with pytest.raises(InputError, match="Connection refused"):
        caption_dataset(ds, "openai:vlm", settings)
    stale = load_captions(ds, "openai:vlm").problems
    assert "1 images changed after they were captioned" in str(stale)
    with RawServer(good) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://{server.address}/v1")
        after = caption_dataset(ds, "openai:vlm", replace(settings, timeout=5.0))
    assert len(after.records) == 4 and file.path.read_bytes().startswith(damaged)
    made_of = {record.image: record.image_sha256 for record in after.records.values()}
    assert made_of[other] == ds.file_of(Path(other).stem).sha256
    again = load_captions(ds, "openai:vlm")
    assert again.records == after.records and "changed" not in str(again.problems)


@CAPTIONS
def test_an_image_set_aside_twice_counts_by_its_last_line(chat):
    captions, _ = chat(good, images=2)
    (file,) = captions.files
    shard = replace(file, part="shard-1-of-2")
    shard.path.touch()
    later = time.time() + 60
    os.utime(shard.path, (later, later))
    for where, reason in ((shard, "loop"), (file, "refusal"), (file, "empty reply")):
        where.set_aside([{"image": "x.png", "reason": reason}])
    assert file.read_rejected()["x.png"]["reason"] == "loop"  # of the file written last
    assert shard.read_rejected()["x.png"]["reason"] == "loop"
    later -= 120
    os.utime(shard.path, (later, later))
    assert file.read_rejected()["x.png"]["reason"] == "empty reply"


@CAPTIONS
def test_other_settings_leave_a_damaged_file_alone(chat):
    before, _ = chat(good, images=4)
    (file,) = before.files
    file.path.write_bytes(file.path.read_bytes()[:-40] + b"\xff\n")
    damaged = file.path.read_bytes()
    chat(good, images=4, seed=7)
    assert file.path.read_bytes() == damaged
    after, server = chat(good, images=4)
    assert after.records == before.records and len(server.requests) == 1


@CAPTIONS
def test_half_a_character_is_left_out(chat, tmp_path):
    def respond(handler, request, n):
        handler.send(completion(caption(request).replace("trees", "trees \\ud83d")))

    captions, _ = chat(respond, images=2)
    assert captions.report.captioned == 2 and not captions.report.retried
    kept = captions.files[0].path.with_suffix(".x.jsonl")
    append_lines(kept, [{"reply": "half \ud83d"}])
    assert [value for _, value, _ in read_lines(kept)] == [{"reply": "half \ud83d"}]


@CAPTIONS
def test_settings_that_alternate_lose_nothing(chat):
    seen = {}
    for temperature in (0.1, 0.9, 0.1, 0.9):
        captions, server = chat(good, images=3, temperature=temperature)
        assert len(server.requests) == (0 if temperature in seen else 3)
        assert seen.setdefault(temperature, captions.records) == captions.records


@CAPTIONS
@damaged(edited(identity={"captioner": "other"}))
def test_shards_with_a_damaged_manifest_are_read(chat, tmp_path, harm):
    ds = scenes(tmp_path, 6)
    expected, _ = chat(good, images=6)
    (file,) = expected.files
    for part in range(2):
        shard = replace(file, part=f"shard-{part + 1}-of-2")
        with shard.held():
            shard.append([*expected.records.values()][part::2])
    file.path.unlink()
    harm(file.manifest_path)
    assert load_captions(ds, "openai:vlm").records == expected.records
    again, server = chat(good, images=6)
    assert server.requests == [] and again.records == expected.records


# — full disks and folders that cannot be written —

DISK = pytest.mark.fault("Full disks")


@DISK
@pytest.mark.parametrize("at", range(1, 8))
def test_a_disk_that_is_full_for_a_while(chat, monkeypatch, at):
    """What was captioned is on disk in the end, and only the rest is asked for again."""
    calls, fsync = [0], os.fsync

    def full(fd):
        calls[0] += 1
        if calls[0] == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    first, one = chat(good, images=4)
    second, two = chat(good, images=4)
    assert not isinstance(second, Exception) and len(second.records) == 4
    assert len(one.requests) + len(two.requests) <= 5
    if isinstance(first, Exception):
        assert "No space left" in str(first)


WRITERS = {
    "text": lambda path, sources: write_text(path, "new"),
    "json": lambda path, sources: write_json(path, {"new": 1}),
    "appended": lambda path, sources: append_lines(path, [{"new": 1}]),
    "vectors": lambda path, sources: sources.embed_captions(),
    "rankings": lambda path, sources: rank_dataset("max", sources),
}


@DISK
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_writing_fails_with_one_sentence(sources, tmp_path, monkeypatch, writer, code):
    def full(*_):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "old"
    path.write_text("old\n")
    with monkeypatch.context() as now:
        now.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"cannot write .*data_dir"):
            writer(path, sources)
    if writer is not WRITERS["appended"]:
        assert path.read_text() == "old\n" and not list(tmp_path.glob(".old*"))
    writer(path, sources)


@DISK
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_for_papermill(monkeypatch, capsys, tmp_path, code):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert main(["run", "sample", "--to", "00", "-p", "data_dir", str(tmp_path)]) == 1
    assert "cannot write" in capsys.readouterr().err


@DISK
def test_figures_go_where_they_may(tmp_path):
    (tmp_path / "a_file").write_text("")
    ds = load_dataset("sample", figures_dir=str(tmp_path / "a_file"))
    with pytest.raises(InputError, match="figures_dir"):
        figures.save(figures.image_grid(ds, []), ds, "00")
    ds = load_dataset("sample", figures_dir=str(tmp_path / "mine"))
    figures.save(figures.image_grid(ds, []), ds, "00")
    assert (tmp_path / "mine" / "sample" / "00.png").is_file()


# — vectors and rankings —

KEPT = pytest.mark.fault("Vectors and rankings")


@pytest.fixture
def sources(data_dir, static_encoder):
    return Sources(load_dataset("rsitmd", str(data_dir)), "pixels", static_encoder)


@pytest.fixture(autouse=True)
def captioned(request):
    if "sources" in request.fixturenames:
        caption_dataset(request.getfixturevalue("sources").dataset, "pixels")


def again(sources: Sources) -> Sources:
    return Sources(sources.dataset, sources.captioner, sources.encoder)


def other_rows(path: Path) -> None:
    """A valid table with its rows in another order."""
    pd.read_parquet(path)[::-1].reset_index(drop=True).to_parquet(path)


def fewer_rows(path: Path) -> None:
    pd.read_parquet(path)[:-2].to_parquet(path)


def other_values(path: Path) -> None:
    table = pd.read_parquet(path)
    column = "n_greater" if "n_greater" in table else table.columns[-1]
    table[column] = table[column].to_numpy()[::-1]
    table.to_parquet(path)


@KEPT
@damaged()
@pytest.mark.parametrize("kind", ["", ".json"])
def test_damaged_vectors_are_made_again(sources, harm, kind):
    made = sources.embed_captions()
    harm(made.path.with_name(made.path.name + kind))
    after = again(sources).embed_captions()
    assert np.array_equal(after.vectors, made.vectors) and after.identity == made.identity
    assert again(sources).embed_captions().encoded == 0


@KEPT
@pytest.mark.parametrize("change", [np.flipud, np.negative, lambda v: v * np.nan, lambda v: v[:-1]])
def test_edited_vectors_are_made_again(sources, change):
    from safetensors.numpy import load_file, save_file

    made = sources.embed_captions()
    tensors = load_file(made.path)
    tensors["vectors"] = np.ascontiguousarray(change(tensors["vectors"]))
    save_file(tensors, made.path)
    assert np.array_equal(again(sources).embed_captions().vectors, made.vectors)


@KEPT
@damaged(other_rows, fewer_rows, other_values)
@pytest.mark.parametrize("kind", ["ranks", "top"])
def test_damaged_rankings_are_made_again(sources, harm, kind):
    made = rank_dataset("max", sources)
    harm(made.path.with_name(made.path.name.replace(".ranks.", f".{kind}.")))
    after = rank_dataset("max", again(sources))
    pd.testing.assert_frame_equal(after.ranks, made.ranks)
    pd.testing.assert_frame_equal(after.top, made.top)
    assert not after.reused and rank_dataset("max", again(sources)).reused


@KEPT
@pytest.mark.parametrize(
    "harm",
    [*DAMAGE[:5], edited(made_from={}), edited(top_k=999), edited(sha256="")],
    ids=lambda harm: harm.__name__,
)
def test_rankings_with_a_damaged_manifest_are_made_again(sources, harm):
    made = rank_dataset("max", sources)
    harm(made.path.with_name(f"{made.path.name}.json"))
    after = rank_dataset("max", again(sources), top_k=5)
    pd.testing.assert_frame_equal(after.ranks, made.ranks)
    assert not after.reused


@KEPT
def test_one_run_holds_what_another_makes_anew(sources, tmp_path):
    """A ranking is saved under the identity of the vectors that it was made of, and of no others."""
    held = sources.embed_captions()
    folder = sources.dataset.derived / "captions"
    (records,) = folder.glob("pixels.*.jsonl")
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for line, other in zip(lines, [*lines[1:], lines[0]], strict=True):
        line["variants"] = json.loads(json.dumps(other["variants"]))
    write_lines(records, lines)  # each image now has another's captions
    changed = again(sources)
    assert changed.embed_captions().identity != held.identity
    right = metrics(rank_dataset("max", changed).ranks)["mR"]
    rank_dataset("max", sources)  # by the run that still holds the earlier vectors
    assert metrics(rank_dataset("max", again(sources)).ranks)["mR"] == right


@KEPT
@pytest.mark.parametrize("moment", range(3))
def test_files_that_another_run_writes_while_they_are_read(sources, monkeypatch, moment):
    made, read, calls = sources.embed_captions(), Path.read_bytes, [0]

    def raced(path):
        content = read(path)
        if path.parent == made.path.parent:
            calls[0] += 1
            if calls[0] == moment + 1:
                path.write_bytes(content[::-1])
        return content

    with monkeypatch.context() as now:
        now.setattr(Path, "read_bytes", raced)
        first = again(sources).embed_captions()
    assert np.array_equal(first.vectors, made.vectors)
    assert np.array_equal(again(sources).embed_captions().vectors, made.vectors)


# — results —

RESULTS = pytest.mark.fault("Results and reports")


def write(sources: Sources) -> Path:
    from trsllava_extras.results import results_path
    from trsllava_extras.statistics import intervals

    made = rank_dataset("max", sources)
    path = results_path(sources.dataset.derived, sources.setting)
    results = {"max": {**metrics(made.ranks), "interval": intervals(made.ranks)}}
    about = {"dataset": "rsitmd", "split": "test", "captioner": "pixels", "encoder": "e"}
    about |= {"parameters": {"method": "max", "clip": ""}, "captioners": results, "n_common": 4}
    about |= {"compared": {}, "baseline": "max", "left_out": {}, "inputs": made.identity}
    write_results(path, results, made.ranks, **about)
    return path


HARM = (*DAMAGE, edited(methods={"max": {"mR": 99.9}}), edited(n_images=1), edited(inputs="other"))
HARM += (unsealed, edited(methods={"max": {"mR": 99.9}}, fingerprint=None))


@RESULTS
@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_damaged_results_are_named_and_never_shown(sources, data_dir, harm):
    path = write(sources)
    assert len(summary(data_dir)[0]) == 2
    harm(path)
    assert read_results(path) == {}
    table, problems = summary(data_dir)
    assert table.empty and len(problems) == path.exists()


# — galleries —

GALLERY = pytest.mark.fault("Galleries")


@pytest.fixture
def gallery(static_encoder, tmp_path):
    made = Gallery(str(tmp_path / "g"), static_encoder)
    made.add(made_up(30), texts_each=30)
    made.embed()
    return made


@GALLERY
@damaged()
def test_damaged_vectors_of_a_gallery_are_named_and_made_again(gallery, harm):
    before = gallery.find("a boat", 9)
    name = gallery.store.names[0]
    path = Path(gallery.url) / gallery.vectors_name(name)
    content = path.read_bytes()
    harm(path)
    from trsllava_extras.gallery import gallery as module

    module.open_part.cache_clear()
    with pytest.raises((InputError, MissingError), match="python -m trsllava_utils gallery"):
        gallery.find("a boat")
    assert gallery.embed() == 1 and path.read_bytes() == content
    pd.testing.assert_frame_equal(gallery.find("a boat", 9), before)


@GALLERY
@damaged(other_rows, fewer_rows, other_values)
def test_damaged_rows_of_a_gallery_are_named(gallery, harm):
    name = gallery.store.names[0]
    path = Path(gallery.url) / f"{name}.parquet"
    harm(path)
    from trsllava_extras.gallery import gallery as module

    module.open_part.cache_clear()
    if harm is not removed:
        with pytest.raises(InputError, match=rf"{name}.* is damaged"):
            gallery.find("a boat")
        path.unlink()
    assert gallery.add(made_up(30), texts_each=30)  # its images come back, under another number
    gallery.embed()
    assert len(gallery.find("a boat", 30)) == 30


@GALLERY
def test_vectors_of_another_partition_are_made_again(gallery):
    """The rows are sound: nobody is told to delete them."""
    first, second = (Path(gallery.url) / gallery.vectors_name(n) for n in gallery.store.names[:2])
    before, content = gallery.find("a boat", 9), first.read_bytes()
    first.write_bytes(second.read_bytes())
    from trsllava_extras.gallery import gallery as module

    module.open_part.cache_clear()
    with pytest.raises(InputError, match="make it again"):
        gallery.find("a boat")
    assert gallery.embed() == 1 and first.read_bytes() == content
    pd.testing.assert_frame_equal(gallery.find("a boat", 9), before)


@GALLERY
@pytest.mark.parametrize("written", range(1, 4))
def test_a_call_that_was_cut_off_goes_on_to_the_same_files(static_encoder, tmp_path, written):
    corpus, whole = made_up(60), Gallery(str(tmp_path / "a"), static_encoder)
    names = whole.add(corpus, texts_each=30)
    cut = Gallery(str(tmp_path / "b"), static_encoder)
    for name in names[:written]:
        cut.store.write(f"{name}.parquet", (tmp_path / "a" / f"{name}.parquet").read_bytes())
    assert cut.add(corpus, texts_each=30) == names[written:] and cut.store.names == names


@GALLERY
@pytest.mark.parametrize("more", [1, 10, 50])
def test_a_grown_dataset_is_added_again(gallery, more):
    assert len(gallery.add(made_up(30 + more), texts_each=30)) >= 1
    gallery.embed()
    assert len(gallery.find("a boat", 999)) == 30 + more


@GALLERY
@pytest.mark.parametrize("url", ["s3://bucket/g", "foo://bucket/g", "gcs://b/g", "", "zip://x::y"])
def test_storage_without_its_package(static_encoder, url):
    with pytest.raises(
        (InputError, MissingError), match=r"package|Protocol not known|url|give a folder"
    ):
        Gallery(url, static_encoder).find("a boat")


# — what is known of rasters —

RASTERS = pytest.mark.fault("Table of rasters")


ODD = [("gsd", "ten"), ("gsd", float("inf")), ("date", None), ("date", 2021), ("problem", 3)]
ODD += [("footprint", [1.0]), ("footprint", [[1, 2]]), ("footprint", [1.0] * 4), ("footprint", {})]
ODD += [("footprints", [None]), ("footprints", None), ("windows", [0, 0, 32]), ("windows", None)]
ODD += [("windows", [-32, 0, 32, 32]), ("percentiles", [1.0] * 100), ("percentiles", None)]
ODD += [("guess", "no"), ("left_out", None), ("left_out", "1"), ("foreign", 1)]


def in_rows(name, value):
    """Every row says something else."""

    def harm(path):
        told = json.loads(path.read_text())
        for row in told["rows"].values():
            row[name] = value
        told.pop("fingerprint")
        write_json(path, told)  # with a seal that is right

    return harm


@RASTERS
@damaged(
    unsealed,
    edited(rows={}),
    edited(rows=None, fingerprint=None),
    edited(rows=[]),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("{"),
    lambda path: path.write_text('{"rows": {"a": 1}}'),
    *(in_rows(name, value) for name, value in ODD),
)
def test_a_damaged_table_of_rasters_is_made_again(tmp_path, harm):
    place = rasterio.transform.from_origin(600_000, 5_300_000, 10, 10)
    how = {"driver": "GTiff", "crs": "EPSG:32632", "transform": place, "dtype": "uint16"}
    (tmp_path / "s").mkdir()
    for n in range(2):
        path = tmp_path / "s" / f"{n}.tif"
        with rasterio.open(path, "w", width=96, height=64, count=1, **how) as raster:
            raster.write(np.arange(96 * 64, dtype=np.uint16).reshape(1, 64, 96) + 1)

    def known():
        ds = load_dataset(str(tmp_path / "s"), str(tmp_path), tile=32)
        return ds, load_metadata(ds)[0].drop(columns="geometry")

    ds, before = known()
    (store,) = ds.derived.glob("rasters-*.json")
    harm(store)
    after, table = known()
    pd.testing.assert_frame_equal(after.images, ds.images)
    pd.testing.assert_frame_equal(table, before)


@RASTERS
def test_tables_of_two_tilings_are_not_taken_for_each_other(tmp_path):
    (tmp_path / "s").mkdir()
    with rasterio.open(
        tmp_path / "s" / "a.tif", "w", "GTiff", width=96, height=64, count=1, dtype="uint8"
    ) as raster:
        raster.write(np.full((1, 64, 96), 7, np.uint8))
    small, large = (load_dataset(str(tmp_path / "s"), str(tmp_path), tile=n) for n in (32, 64))
    shutil.copy(small.derived / "rasters-32-0.json", small.derived / "rasters-64-0.json")
    again = load_dataset(str(tmp_path / "s"), str(tmp_path), tile=64)
    assert again.images["image_id"].tolist() == large.images["image_id"].tolist()


# — how files are written —

FILES = pytest.mark.fault("Writing files")


@FILES
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_users_umask_is_kept(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


@FILES
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_the_rights_of_a_file_are_kept(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new")
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == mode


@FILES
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path, relative):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "b.txt", tmp_path / "a.txt"
    target.write_text("old")
    link.symlink_to("far/b.txt" if relative else target)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"


@FILES
@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout"])
def test_a_device_stays_a_device(device):
    kind = Path(device).stat().st_mode
    write_text(device, "to a device\n")
    assert stat.S_IFMT(Path(device).stat().st_mode) == stat.S_IFMT(kind)


@FILES
def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "a", "x")


@FILES
@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")']
)
@pytest.mark.parametrize("where", ["cell", "index", "column"])
def test_tables_hold_no_formulas(cell, where):
    table = pd.DataFrame({"a": [cell], "n": [-1.5]}, index=[cell if where == "index" else "i"])
    table = table.rename(columns={"a": cell}) if where == "column" else table
    text = csv_text(table)
    assert "'" + cell in text.replace('""', '"') and "-1.5" in text


@FILES
def test_random_values_come_back_from_json_lines(tmp_path):
    rng = random.Random(0)
    letters = [chr(n) for n in (*range(300), 0x2028, 0x2029, 0xD800, 0xDFFF, 0xFEFF, 0x1F600)]
    values = [{"text": "".join(rng.choices(letters, k=40))} for _ in range(300)]
    write_lines(tmp_path / "a.jsonl", values[:100])
    append_lines(tmp_path / "a.jsonl", values[100:])
    assert [value for _, value, _ in read_lines(tmp_path / "a.jsonl")] == values
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) >= 300
    assert files.read_json(tmp_path / "nowhere.json") == {}
    assert read_records(tmp_path / "a.jsonl")[0] == {}
