"""The captioning run: servers that misbehave, kills, locks, shards, secrets, budgets."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.conftest import KEY, captions_file, draw, scenes
from tests.openai_server import Server
from trsllava_extras.runner import report_table
from trsllava_extras.servers import client as openai_api
from trsllava_extras.shards import caption_shard
from trsllava_utils.captioner import Settings
from trsllava_utils.captioning import caption_dataset
from trsllava_utils.captions import Captions, load_captions, seen_by
from trsllava_utils.data import load_dataset
from trsllava_utils.files import PROJECT_ROOT, InputError, MissingError
from trsllava_utils.images import Rendering
from trsllava_utils.records import read_records

MISBEHAVIOUR = "slow drop torn page busy broken half cut prose schema empty german refuse"
MISBEHAVIOUR = [*MISBEHAVIOUR.split(), "loop", "chatty"]


def everything_written(folder: Path) -> str:
    return "".join(p.read_text() for p in folder.rglob("*") if p.suffix in {".jsonl", ".json"})


def test_two_hundred_images_and_a_misbehaving_server(serve, tmp_path, impatient, monkeypatch):
    """Every image is captioned or set aside with a reason; none is lost, none done twice."""
    monkeypatch.setattr(openai_api, "RETRIES", 12)  # every fifth request fails: no such streak
    names = MISBEHAVIOUR + ["good"] * len(MISBEHAVIOUR)
    server = serve(lambda n: random.Random(n).choice(names))
    ds = scenes(tmp_path, 200)
    captions = caption_dataset(ds, "openai:vlm", Settings(concurrency=32, timeout=1))
    report, aside = captions.report, captions.files[0].read_rejected()
    assert set(server.done) >= set(names)  # each of these things happened
    lines = [json.loads(line)["image"] for line in captions.files[0].path.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == report.captioned == len(captions.records)
    assert {*lines, *aside} == set(ds.images["filename"]) and not {*lines} & {*aside}
    assert report.captioned > 150 and report.retried > 20 and not report.failed
    assert all(value["reason"] and value["attempts"] == 3 for value in aside.values())
    reasons = {"refusal", "loop", "wrong language", "empty reply", "wrong schema", "not JSON"}
    assert reasons <= set(report.retries)
    table = report_table(report, Settings(price_in=1, price_out=2))
    assert table.loc["captioned now", "number"] == len(lines)
    tokens = report.usage["input tokens"] + 2 * report.usage["output tokens"]
    assert table.loc["estimated cost (US $)", "number"] == pytest.approx(tokens / 1e6, abs=1e-4)
    record = next(iter(captions.records.values()))
    assert record.model == "vlm-2026-01" and len(record.variants) == 5
    # what failed is not asked about again; what was set aside can be tried again by hand
    assert caption_dataset(ds, "openai:vlm", Settings()).report.captioned == 0
    server.script = lambda n: "good"
    captions.files[0].rejected_path.unlink(missing_ok=True)
    assert caption_dataset(ds, "openai:vlm", Settings()).report.captioned == len(aside)


def test_the_key_is_written_nowhere(serve, tmp_path, capfd):
    serve(lambda n: "chatty" if n < 9 else "key")
    ds = scenes(tmp_path, 6)
    with pytest.raises(InputError, match=r"wrong key: Bearer \[key\]") as caught:
        caption_dataset(ds, "openai:vlm", Settings(concurrency=1))
    import traceback

    assert KEY not in "".join(traceback.format_exception(caught.value))
    written, printed = everything_written(tmp_path), capfd.readouterr()
    assert "repeated the key" in written and KEY not in written + printed.out + printed.err


def test_the_key_is_in_no_notebook_output(serve, tmp_path):
    """Notebook 01 run by papermill against a server that repeats the key."""
    serve(lambda n: ("chatty", "good", "key")[min(n, 2)])
    scenes(tmp_path, 3)
    command = [sys.executable, "-m", "trsllava_utils", "run", str(tmp_path / "scenes")]
    options = {"captioner": "openai:vlm", "concurrency": 1, "data_dir": tmp_path}
    for name, value in options.items():
        command += ["-p", name, str(value)]
    done = subprocess.run([*command, "--from", "01", "--to", "01"], capture_output=True, text=True)
    assert done.returncode == 1 and "[key]" in done.stderr
    notebooks = [p.read_text() for p in tmp_path.rglob("*.ipynb")]
    assert notebooks and KEY not in "".join(notebooks) + done.stdout + done.stderr
    assert KEY not in everything_written(tmp_path)


def test_requests_in_flight_and_their_content(serve, tmp_path):
    server = serve(latency=0.3)
    caption_dataset(scenes(tmp_path, 24), "openai:vlm", Settings(concurrency=6, temperature=0.3))
    assert server.most == 6
    request = server.requests[0]
    kinds = [part["type"] for part in request["messages"][0]["content"]]
    assert kinds == ["text", "image_url"] and request["temperature"] == 0.3
    assert request["response_format"]["json_schema"]["strict"]
    assert len({r["seed"] for r in server.requests}) == 24  # each image has its own


@pytest.mark.parametrize("formats", [("json_schema",), ("json_object",), ()])
def test_servers_that_know_less(serve, tmp_path, formats):
    server = serve(formats=formats, refused=("seed", "max_tokens"))
    captions = caption_dataset(scenes(tmp_path, 6), "openai:vlm", Settings(concurrency=2))
    assert captions.report.captioned == 6 and "the server takes no seed" in captions.problems[-1]
    assert "max_completion_tokens" in server.requests[-1] and "seed" not in server.requests[-1]
    form = server.requests[-1].get("response_format", {}).get("type")
    assert form == (formats[0] if formats else None)
    assert server.done.count("refused") <= 15  # five steps, three threads


def test_an_image_that_the_server_refuses_is_set_aside(serve, tmp_path):
    serve(lambda n: "safety" if n == 2 else "good")
    settings = Settings(concurrency=1, attempts=1)
    captions = caption_dataset(scenes(tmp_path, 5), "openai:vlm", settings)
    (aside,) = captions.files[0].read_rejected().values()
    assert captions.report.captioned == 4 and aside["reason"] == "refused by the server"


def test_budget(serve, tmp_path):
    server = serve()
    ds = scenes(tmp_path, 12)
    settings = Settings(concurrency=4, max_requests=7)
    first = caption_dataset(ds, "openai:vlm", settings).report
    assert (first.captioned, first.left, len(server.requests)) == (7, 5, 7)
    assert "max_requests=7 are spent" in str(report_table(first, settings).loc["not tried", "why"])
    second = caption_dataset(ds, "openai:vlm", settings).report
    assert (second.already, second.captioned, second.left) == (7, 5, 0)


@pytest.mark.parametrize(("name", "words"), [("broken", "no answer after"), ("quota", "quota")])
def test_a_server_that_breaks_for_good_ends_the_run(serve, tmp_path, impatient, name, words):
    server = serve(lambda n: "good" if n < 5 else name)
    ds = scenes(tmp_path, 40)
    with pytest.raises(InputError, match=words):
        caption_dataset(ds, "openai:vlm", Settings(concurrency=2))
    assert len(server.requests) < 80 and len(load_captions(ds, "openai:vlm").records) >= 4
    assert not captions_file(ds, "openai:vlm").read_rejected()  # nothing to blame images for


def test_retry_after_is_honoured(serve, tmp_path):
    server = serve(lambda n: "busy" if n == 0 else "good")
    started = time.perf_counter()
    caption_dataset(scenes(tmp_path, 1), "openai:vlm", Settings())
    assert time.perf_counter() - started >= 0.3 and server.done == ["busy", "good"]


def test_no_key_and_no_model(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ds = scenes(tmp_path, 1)
    with pytest.raises(MissingError, match="OPENAI_API_KEY"):
        caption_dataset(ds, "openai:vlm")
    with pytest.raises(InputError, match="openai:MODEL"):
        caption_dataset(ds, "openai:")


def test_the_query_prompt_has_a_file_of_its_own(serve, tmp_path):
    serve()
    ds = scenes(tmp_path, 3)
    structured = caption_dataset(ds, "openai:vlm", Settings(variants=2))
    query = caption_dataset(ds, "openai:vlm", Settings(prompt="query"))
    assert query.files[0].path.name.startswith("openai-vlm.query.")
    assert "query" not in structured.files[0].path.name
    assert all(
        len(r.variants) == 1 and not r.variants[0].structured for r in query.records.values()
    )
    assert load_captions(ds, "query:openai:vlm").records == query.records
    assert "Somebody wants to find" in query.files[0].manifest()["prompt"]
    long = caption_dataset(ds, "description:openai:vlm")
    assert long.captioner == "openai-vlm.description" and len(long.records) == 3
    assert "One paragraph" in long.files[0].manifest()["prompt"]


def test_other_settings_never_share_a_file(serve, tmp_path):
    serve()
    ds = scenes(tmp_path, 4)
    warm = caption_dataset(ds, "openai:vlm", Settings(temperature=0.7))
    cold = caption_dataset(ds, "openai:vlm", Settings(temperature=0.0))
    assert cold.report.captioned == 4 and len(read_records(cold.files[0].path)[0]) == 4
    fingerprints = {r.settings for c in (warm, cold) for r in c.records.values()}
    assert len(fingerprints) == 2
    again = caption_dataset(ds, "openai:vlm", Settings(temperature=0.7))  # taken back, not redone
    assert again.report.already == 4 and again.records == warm.records


def test_colours_stretched_together_leave_other_captions_as_they_are(serve, tmp_path, capsys):
    """Once each band was stretched by itself. Only pictures that have changed are described anew,
    a line says how many first, and the earlier captions can be had again."""
    server, folder = serve(), tmp_path / "mine"
    folder.mkdir()
    draw(folder / "photograph.jpg")
    values = np.random.default_rng(0).integers(200, 3000, (3, 32, 32)).astype(np.uint16)
    for name, bands in {"deep": values, "plain": values // 16, "grey": values[:1]}.items():
        kind = "uint8" if name == "plain" else "uint16"
        how = {"driver": "GTiff", "width": 32, "height": 32, "count": len(bands), "dtype": kind}
        with rasterio.open(folder / f"{name}.tif", "w", **how) as raster:
            raster.write(bands.astype(kind))

    def run(stretch: str) -> Captions:
        ds = load_dataset(str(folder), str(tmp_path), rendering=Rendering(stretch=stretch))
        return caption_dataset(ds, "openai:vlm")

    earlier = run("per-band")
    manifest = earlier.files[0].manifest()["identity"]
    assert "stretch" not in manifest  # as it was written once
    assert earlier.report.captioned == 4
    ds = load_dataset(str(folder), str(tmp_path))
    assert seen_by("openai:vlm", ds).rendering.stretch == "per-band"
    asked = len(server.requests)
    now = run("")
    assert "1 images are described anew" in capsys.readouterr().out
    assert len(server.requests) == asked + 1 and len(now.records) == 4
    assert (now.report.already, now.report.captioned) == (3, 1)
    assert seen_by("openai:vlm", ds).rendering.stretch == "together"
    assert run("").report.already == 4 and not capsys.readouterr().out
    back = run("per-band")
    assert back.records == earlier.records and len(server.requests) == asked + 1


def test_a_second_run_says_so_and_stops(serve, tmp_path):
    serve()
    ds = scenes(tmp_path, 2)
    caption_dataset(ds, "openai:vlm")
    with (
        captions_file(ds, "openai:vlm").held(),
        pytest.raises(InputError, match="another run is writing"),
    ):
        caption_dataset(ds, "openai:vlm")


def test_shards_together_are_what_one_run_makes(serve, tmp_path):
    server = serve()
    ds = scenes(tmp_path, 20)
    whole = caption_dataset(ds, "openai:vlm")
    expected = set(whole.files[0].path.read_text().splitlines())
    whole.files[0].path.unlink()
    parts = [caption_shard(ds, "openai:vlm", shard=f"{i}/3") for i in (1, 2)]
    assert sum(p.report.captioned for p in parts) < 20 and all(p.records for p in parts)
    some = load_captions(ds, "openai:vlm")  # shards are read like the whole
    assert len(some.records) == sum(p.report.captioned for p in parts)
    caption_shard(ds, "openai:vlm", shard="3/3")
    shards = whole.files[0].path.parent.glob("*shard-?-of-3.jsonl")
    assert {line for file in shards for line in file.read_text().splitlines()} == expected
    asked = len(server.requests)
    again = caption_dataset(ds, "openai:vlm")
    assert again.records == whole.records and len(server.requests) == asked


def test_shards_of_other_settings_are_left_alone(serve, tmp_path):
    serve()
    ds = scenes(tmp_path, 12)
    caption_shard(ds, "openai:vlm", Settings(seed=1), shard="1/2")
    caption_shard(ds, "openai:vlm", Settings(seed=2), shard="2/2")
    records = load_captions(ds, "openai:vlm").records  # of the settings that were run last
    assert len(records) < 12
    made_with = captions_file(ds, "openai:vlm").made_with
    assert {record.settings for record in records.values()} == {made_with}
    with pytest.raises(InputError, match="i/n"):
        caption_shard(ds, "openai:vlm", shard="3/2")


def kill_at_random(
    server: Server, data_dir: Path, name: str, kills: int, seed: int, longest: float = 0.8
) -> int:
    """Run the captioning in a process that is killed at random instants after its first request;
    how often it was."""
    rng, killed = random.Random(seed), 0
    code = (
        "from trsllava_utils.captioner import Settings\n"
        "from trsllava_utils import caption_dataset, load_dataset\n"
        f"ds = load_dataset({name!r}, {str(data_dir)!r})\n"
        "caption_dataset(ds, 'openai:vlm', Settings(concurrency=4))"
    )
    while killed < kills:
        asked = len(server.requests)
        run = subprocess.Popen(
            [sys.executable, "-c", code], cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL
        )
        while len(server.requests) == asked and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        run.send_signal(signal.SIGKILL)
        if run.wait() == 0:
            break  # nothing left to interrupt
        killed += 1
    return killed


def test_kills_at_random_instants(serve, tmp_path):
    """After every kill -9 the run goes on; the file is that of an uninterrupted run."""
    server = serve(latency=0.15)
    ds = scenes(tmp_path, 60)
    assert kill_at_random(server, tmp_path, str(tmp_path / "scenes"), 3, seed=0) == 3
    path = captions_file(ds, "openai:vlm").path
    path.write_bytes(path.read_bytes()[:-20])  # and a power cut: half a last line
    interrupted = caption_dataset(ds, "openai:vlm", Settings(concurrency=4))
    whole = caption_dataset(scenes(tmp_path / "other", 60), "openai:vlm", Settings())
    assert interrupted.records == whole.records
    lines = path.read_text().splitlines()
    assert len(lines) == 60 and set(lines) == set(whole.files[0].path.read_text().splitlines())
