"""Captions: the pixels captioner, the file captioner, resuming and bad lines."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from tests.conftest import draw
from trsllava_utils import captioning
from trsllava_utils.caption_file import CaptionFile
from trsllava_utils.captioner import Reply, Settings
from trsllava_utils.captioning import Job, Outcome, run_in_turn
from trsllava_utils.captions import Report, load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.records import Record, Variant, parse_line, read_records

SAMPLE = PROJECT_ROOT / "data" / "sample" / "images"
TWO = Settings(variants=2)
VARIANT = {"one_sentence": "a port", "feature": "boats; water", "caption": "Boats in a port."}


def test_run_resumes_and_equals_one_run(data_dir):
    ds = load_dataset("rsitmd", str(data_dir))
    whole = captioning.caption_dataset(ds, "pixels", TWO)
    (file,) = whole.files
    lines = file.path.read_bytes()
    assert (
        whole.report.captioned == 4
        and captioning.caption_dataset(ds, "pixels", TWO).report.captioned == 0
    )
    cut = lines.splitlines(keepends=True)
    file.path.write_bytes(b"".join(cut[:2]) + cut[2][:40])  # killed in the third image
    again = captioning.caption_dataset(ds, "pixels", TWO)
    assert again.report.captioned == 2 and again.records == whole.records
    assert load_captions(ds, "pixels").records == whole.records
    assert sorted(file.path.read_bytes().splitlines()) == sorted(lines.splitlines())
    file.path.write_bytes(lines[:-1])  # only the last line break is missing: nothing is lost
    file.append([Record(image="x.png", model="people", variants=[Variant(caption="added")])])
    assert len(read_records(file.path)[0]) == 5 and file.path.read_bytes().startswith(lines)


def test_changed_pixels_and_changed_captioner(data_dir):
    ds = load_dataset("rsitmd", str(data_dir))
    first = captioning.caption_dataset(ds, "pixels", TWO)
    draw(data_dir / "rsitmd" / "images" / "park_3.png", seed=9)
    assert "1 images changed" in " ".join(load_captions(ds, "pixels").problems)
    second = captioning.caption_dataset(ds, "pixels", TWO)
    assert not load_captions(ds, "pixels").problems
    assert second.report.captioned == 1 and len(read_records(second.files[0].path)[0]) == 4
    assert second.records["park_3"].image_sha256 != first.records["park_3"].image_sha256
    assert captioning.caption_dataset(ds, "pixels", Settings(variants=3)).report.captioned == 4
    assert len(read_records(second.files[0].path)[0]) == 4  # the earlier captions are kept


def test_a_broken_image_does_not_stop_the_run(data_dir):
    (data_dir / "rsitmd" / "images" / "river_2.png").write_bytes(b"no")
    captions = captioning.caption_dataset(
        load_dataset("rsitmd", str(data_dir)), "pixels", Settings(variants=1)
    )
    assert len(captions.records) == 3 and "river_2.png" in captions.problems[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps({"image": "a.png", "variants": []}), "variants"),
        (json.dumps({"image": "a.png", "variants": [VARIANT] * 11}), "variants"),
        (
            json.dumps(
                {
                    "image": "a.png",
                    "variants": [{k: VARIANT[k] for k in ("one_sentence", "caption")}],
                }
            ),
            "lacks feature",
        ),
        (json.dumps({"image": "a.png", "variants": [VARIANT | {"caption": " "}]}), "caption"),
        (json.dumps({"caption": "no image"}), "image"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_bad_lines(line, words):
    with pytest.raises(InputError, match=words):
        parse_line(json.loads(line))


def test_file_captioner(data_dir, tmp_path):
    ds = load_dataset("rsitmd", str(data_dir))
    lines = [
        {
            "image": "port_1.tif",
            "model": "m",
            "variants": [VARIANT, VARIANT],
        },  # matched by its stem
        {"image": "river_2.png", **VARIANT},
        {"image": "river_2.png", **VARIANT},
        {"image": "park_3.png", "caption": "a park"},
        {"image": "nowhere.png", "caption": "x"},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"image": "beach', encoding="utf-8")
    captions = load_captions(ds, f"file:{path}")
    assert {k: len(r.variants) for k, r in captions.records.items()} == {
        "port_1": 2,
        "river_2": 2,
        "park_3": 1,
    }
    said = " ".join(captions.problems)
    assert "line 6" in said and "nowhere.png" in said and "beach_4" in said
    corpus = captions.corpus()
    assert corpus["field"].tolist() == ["full"] * 4 + ["caption"]
    assert (
        corpus["text"][0]
        == "ONE_SENTENCE: a port\nFEATURE: boats; water\nCAPTION: Boats in a port."
    )
    assert len(captions.corpus("fields")) == 13


def test_file_captioner_refuses_what_it_cannot_use(data_dir, tmp_path):
    ds = load_dataset("rsitmd", str(data_dir))
    with pytest.raises(MissingError, match="not found"):
        load_captions(ds, f"file:{tmp_path / 'none.jsonl'}")
    (tmp_path / "c.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="no usable"):
        load_captions(ds, f"file:{tmp_path / 'c.jsonl'}")
    (tmp_path / "c.jsonl").write_text('{"image": "other.png", "caption": "x"}\n')
    with pytest.raises(InputError, match="another split"):
        load_captions(ds, f"file:{tmp_path / 'c.jsonl'}")


def test_missing_captions_and_unknown_captioner(data_dir):
    ds = load_dataset("rsitmd", str(data_dir))
    with pytest.raises(MissingError, match="papermill 01_structured_captioning"):
        load_captions(ds, "pixels")
    with pytest.raises(InputError, match="Did you mean 'pixels'"):
        load_captions(ds, "pixel")


def test_images_set_aside_stay_aside_whatever_the_model_said(tmp_path):
    """Line ends of other kinds in a reply, and a last line cut off in the middle of a letter."""
    file = CaptionFile(tmp_path, "x", "0" * 16)
    file.set_aside([{"image": f"{n}.png", "reply": "no\u2028JSON\u0085河"} for n in range(3)])
    assert set(file.read_rejected()) == {"0.png", "1.png", "2.png"}
    whole = file.rejected_path.read_bytes()
    file.rejected_path.write_bytes(whole[: whole.rindex("河".encode()) + 1])
    assert set(file.read_rejected()) == {"0.png", "1.png"}
    file.set_aside([{"image": "3.png"}])
    assert set(file.read_rejected()) == {"0.png", "1.png", "3.png"}


def test_reports_add_up():
    one = Report(captioned=2, seconds=3.0, usage=Counter(requests=2, tokens=0))
    two = Report(captioned=1, seconds=5.0, usage=Counter(requests=1), problems=["x"])
    both = sum([one, two], Report())
    assert (both.captioned, both.seconds, both.problems) == (3, 5.0, ["x"])
    assert dict(both.usage) == {"requests": 3, "tokens": 0} and one.captioned == 2


def test_files_of_earlier_versions_are_found_and_kept(data_dir):
    """They had no settings in their names; those of other settings were put aside."""
    ds = load_dataset("rsitmd", str(data_dir))
    made = {n: captioning.caption_dataset(ds, "pixels", Settings(variants=n)) for n in (2, 3)}
    folder = ds.derived / "captions"
    now, earlier = made[3].files[0], made[2].files[0]
    now.set_aside([{"image": "gone.png", "reason": "loop"}])
    now.path.rename(folder / "pixels.jsonl")
    now.manifest_path.rename(folder / "pixels.json")
    now.rejected_path.rename(folder / "pixels.rejected.jsonl")
    for path, kind in ((earlier.path, "jsonl"), (earlier.manifest_path, "json")):
        path.rename(folder / f"pixels.{kind}.{earlier.made_with}.superseded")
    loaded = load_captions(ds, "pixels")
    assert loaded.records == made[3].records and loaded.files == made[3].files
    assert loaded.files[0].read_rejected()["gone.png"]["reason"] == "loop"
    again = captioning.caption_dataset(ds, "pixels", Settings(variants=2))
    assert again.report.already == 4 and again.records == made[2].records
    assert load_captions(ds, "pixels").records == made[2].records  # the last one that was run


def test_one_image_after_the_other_names_files_that_cannot_be_read(tmp_path):
    """Without the extras' runner."""
    jobs = [Job(name, None, "") for name in ("good.png", "bad.png", "again.png")]

    def outcomes_of(batch):
        (job,) = batch
        if job.filename == "bad.png":
            return [Outcome(job, detail="bad.png cannot be read", unreadable=True)]
        if job.filename == "again.png" and not job.attempt:
            return [Outcome(job, Reply("", "m"), reason="empty")]
        return [
            Outcome(
                job,
                Reply("", "m"),
                Record(image=job.filename, model="m", variants=[Variant(caption="a view")]),
            )
        ]

    file = CaptionFile(tmp_path, "made", "0" * 16)
    report, records = run_in_turn(jobs, outcomes_of, SimpleNamespace(attempts=2, usage={}), file)
    assert list(records) == ["good.png", "again.png"] == list(file.read()[0])
    assert (report.captioned, report.retried, report.unreadable) == (2, 1, 1)
    assert report.problems == ["bad.png cannot be read; the run went on without it"]
