"""Sources and what is varied on them, on the sample dataset with captions made of reference words:
rules whose bank, weights or captions are missing, caches, tuning, ablation, captioners, galleries;
CLIP and SigLIP of real architecture and no knowledge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny_models
from tests.conftest import functions, write_captions
from trsllava_extras import experiments, results
from trsllava_extras.clip import ClipEncoder, vectors
from trsllava_extras.methods import Method, embed_bank
from trsllava_extras.pages import caption_texts
from trsllava_extras.panel.index import Index
from trsllava_utils import recall as evaluation
from trsllava_utils.captions import load_captions
from trsllava_utils.data import load_dataset
from trsllava_utils.files import InputError, MissingError
from trsllava_utils.ranking import retrieve
from trsllava_utils.rankings import rank_dataset
from trsllava_utils.scoring import best_cosine
from trsllava_utils.sources import Sources
from trsllava_utils.weights import embedded_minilm


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def captioner(data_dir) -> str:
    return write_captions(data_dir / "people.jsonl", load_dataset("sample", split="all"))


@pytest.fixture(scope="module")
def sources(data_dir, captioner) -> Sources:
    """Eighteen test images are enough."""
    dataset = load_dataset("sample", str(data_dir), "test")
    keep = dataset.images["image_id"].iloc[::6]
    return Sources(
        replace(
            dataset,
            images=dataset.images[dataset.images["image_id"].isin(keep)],
            captions=dataset.captions[dataset.captions["image_id"].isin(keep)],
        ),
        captioner,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    kinds = (tiny_models.clip, tiny_models.siglip)
    return {make.__name__: str(make(folder / make.__name__)) for make in kinds}


def test_rules_that_lack_something_say_so_and_leave_the_others(sources, data_dir):
    done, missing = experiments.rank_methods(["max", "clip", "fusion", "mean"], sources)
    assert list(done) == ["max", "mean"] and set(missing) == {"clip", "fusion"}
    assert "-p clip openai/clip-vit-base-patch32" in missing["clip"]
    train = replace(sources, dataset=load_dataset("sample", str(data_dir), "train"))
    done, missing = experiments.rank_methods(["querybank", "centred", "max"], train)
    assert list(done) == ["max"] and set(missing) == {"querybank", "centred‡"}
    assert "needs a bank of training captions" in missing["querybank"]


def test_weights_that_cannot_be_had_are_named(sources, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, missing = experiments.rank_methods(["clip"], replace(sources, clip="/no/such/clip"))
    assert "/no/such/clip" in missing["clip"]
    _, missing = experiments.rank_methods(
        ["clip"], replace(sources, clip="open_clip:ViT-B-32:no.pt")
    )
    assert "open_clip" in missing["clip"]


def test_rankings_are_reused_and_made_again(sources):
    first = rank_dataset("max", sources, 5)
    assert rank_dataset("max", sources, 5).reused
    fewer = rank_dataset("max", sources, 3)
    assert fewer.reused and fewer.top["rank"].max() == 3
    pd.testing.assert_frame_equal(fewer.top, retrieve("max", sources, 3)[1])
    with pytest.raises(InputError, match="top_k=0"):
        rank_dataset("max", sources, 0)
    assert not rank_dataset("max", sources, 15).reused
    assert not rank_dataset("max", replace(sources, variants=1), 3).reused
    assert rank_dataset("max", sources, 3).reused
    manifest = first.path.with_name(f"{first.path.name}.json")
    manifest.write_text('{"made_from": "other"}')
    assert not rank_dataset("max", sources, 3).reused
    shorter = pd.read_parquet(first.path).iloc[1:]
    shorter.to_parquet(first.path)  # somebody took a row out
    assert not rank_dataset("max", sources, 3).reused
    assert len(rank_dataset("max", sources, 3).ranks) == len(shorter) + 1
    names = {rank_dataset(m, sources).path for m in ("texts(fields)", "mean", "texts(caption)")}
    assert len(names) == 3


def test_a_text_known_from_another_corpus_is_not_encoded_again(sources, data_dir):
    assert len(sources.embed_reference().rows) and len(embed_bank(sources).rows)
    everything = replace(sources, dataset=load_dataset("sample", str(data_dir), "all"))
    known = {*sources.embed_reference().rows["text"], *embed_bank(sources).rows["text"]}
    new = set(everything.dataset.captions["text"]) - known
    assert (
        everything.embed_reference().encoded
        <= len(new)
        < len(set(everything.dataset.captions["text"]))
    )


def test_settings_are_chosen_on_validation_queries_only(sources):
    val = experiments.validation(sources)
    assert val.dataset.split == "val" and not set(val.gallery) & set(sources.gallery)
    table, chosen = experiments.tune(["csls", "max", "querybank(k=3)", "fusion"], val)
    assert set(table["rule"]) == {"csls"} and chosen["max"] == "max"
    assert chosen["querybank(k=3)"] == "querybank(k=3)" and chosen["fusion"] == "fusion"
    best = table.loc[table["mR"].idxmax(), "method"]
    assert chosen["csls"] == best.removeprefix("csls ") and "csls(k=" in chosen["csls"]
    by_hand = {m: evaluation.metrics(retrieve(m, val)[0])["mR"] for m in table["method"]}
    assert by_hand == pytest.approx(table.set_index("method")["mR"].to_dict())


def test_training_images_ask_in_image_to_text(sources):
    """The bank of image-to-text: each training image by its own distinct captions."""
    train = sources.dataset.on("train").captions
    both = Method("querybank(k=1)").sides(sources, sources.gallery)
    assert both.image_bank.n == train["image_id"].nunique() == 42
    assert len(both.image_bank.texts) == len(train.drop_duplicates(["image_id", "text"]))
    assert len(both.bank.texts) == train["text"].nunique()
    plain, banked = (retrieve(m, sources)[1] for m in ("max", "max+querybank(k=1)"))
    key = ["direction", "query_id", "item_id"]
    scores = plain.merge(banked, on=key, suffixes=("", "_banked"))
    for direction, items, bank in (
        ("t2i", both.images, both.bank),
        ("i2t", both.references, both.image_bank),
    ):
        loss = best_cosine(bank, items.side)(slice(0, bank.n)).max(axis=0) / 2
        rows = scores[scores["direction"] == direction]
        expected = rows["item_id"].map(dict(zip(items.ids, loss, strict=True)))
        assert len(rows) > 50
        assert (rows["score"] - rows["score_banked"]).to_numpy() == pytest.approx(
            expected.to_numpy(), abs=1e-6
        )
    index = Index(sources, "querybank(k=1)")
    image = index.image_ids[0]
    loss = best_cosine(both.image_bank, both.images.side)(slice(0, 42)).max(axis=0) / 2
    plain = Index(sources).scores(f"[{image}]").to_numpy()
    assert index.scores(f"[{image}]").to_numpy() == pytest.approx(plain - loss, abs=1e-6)


def test_images_are_chosen_by_among_all_captions_of_the_split(sources, data_dir, tmp_path):
    """Reference captions need no captioner: those of images that nobody described stand in the
    gallery of image-to-text on the validation split."""
    dataset = load_dataset("sample", str(data_dir), "all")
    few = replace(sources, captioner=write_captions(tmp_path / "few.jsonl", dataset, every=7))
    val = experiments.validation(few)
    ranks = rank_dataset("max", val).ranks
    n_items = ranks.groupby("direction")["n_items"].first()
    assert n_items["t2i"] == len(val.gallery) == 9 and n_items["i2t"] == 63 * 5
    assert set(ranks["image_id"]) == set(val.gallery)
    narrow = rank_dataset("max", replace(val, all_references=False)).ranks
    assert narrow.groupby("direction")["n_items"].first()["i2t"] == 9 * 5
    key, counts = ["direction", "query_id"], ["n_greater", "n_tied"]
    wide, narrow = (r.set_index(key)[counts].sort_index() for r in (ranks, narrow))
    assert (wide.loc["t2i"] == narrow.loc["t2i"]).all(axis=None)
    assert (wide.loc["i2t"].sum(axis=1) >= narrow.loc["i2t"].sum(axis=1)).all()
    people = rank_dataset("reference", val).ranks
    assert people.groupby("direction")["n_items"].first().to_dict() == {"t2i": 9, "i2t": 315}


def test_the_choice_is_repeated_on_images_drawn_anew(sources):
    val = experiments.validation(sources)
    drawn = experiments.choose_again(["max", "lexical", "max", "texts(feature)"], val, sources, 200)
    share = drawn["method"].value_counts(normalize=True)
    mr = {m: evaluation.metrics(rank_dataset(m, sources, 1).ranks)["mR"] for m in share.index}
    assert len(drawn) == 200 and share.index[0] == max(
        ("max", "lexical", "texts(feature)"),
        key=lambda m: evaluation.metrics(rank_dataset(m, val, 1).ranks)["mR"],
    )
    assert drawn["whole"].to_numpy() == pytest.approx(drawn["method"].map(mr).to_numpy())
    assert drawn["regret"].to_numpy() == pytest.approx(max(mr.values()) - drawn["whole"])
    assert drawn["mR"].mean() == pytest.approx(drawn["whole"].mean(), abs=2)
    assert drawn["mR"].std() > 0.3


def test_equal_captions_are_one_text_and_all_its_images_are_right(sources):
    """Against a loop over the texts."""
    captions = sources.dataset.captions.copy()
    captions.loc[captions["variant"] == 0, "text"] = "some trees"
    same = replace(sources, dataset=replace(sources.dataset, captions=captions))
    ranks = experiments.equal_captions_merged("max", same)
    both = Method("max").sides(same, same.gallery)
    texts = list(dict.fromkeys(both.references.side.texts))
    assert len(texts) == 18 * 4 + 1
    assert ranks["direction"].value_counts().to_dict() == {"t2i": 73, "i2t": 18}
    cosine = best_cosine(both.references.side, both.images.side)(slice(0, 90))
    row = {text: n for n, text in enumerate(both.references.side.texts)}
    cosine = cosine[[row[text] for text in texts]]
    owners = pd.Series(both.references.owner).groupby(both.references.side.texts).agg(set)
    for direction, scores in (("t2i", cosine), ("i2t", cosine.T)):
        mine = ranks[ranks["direction"] == direction]
        for n, found in enumerate(mine.itertuples()):
            right = (
                sorted(owners[texts[n]])
                if direction == "t2i"
                else [t for t, text in enumerate(texts) if n in owners[text]]
            )
            best = scores[n, right].max()
            assert found.n_greater == (scores[n] > best + 1e-6).sum()
            assert found.n_relevant_tied == (scores[n, right] > best - 1e-6).sum()
    assert evaluation.metrics(ranks)["mR"] > evaluation.metrics(retrieve("max", same)[0])["mR"]
    whole = experiments.equal_captions_merged("querybank", same)
    assert len(whole) == len(ranks)


def test_another_captioners_texts_ask(data_dir, tmp_path):
    dataset = load_dataset("sample", str(tmp_path), "test")
    sources = Sources(dataset, "rsrt")
    asked = experiments.asked_with("query", sources)
    ranks = retrieve("max", asked)[0]
    assert ranks["direction"].value_counts().to_dict() == {"t2i": 105, "i2t": 105}
    text = load_captions(dataset, "query").records["harbor92"].variants[0].caption
    own = asked.dataset.captions.set_index("image_id").loc["harbor92"]
    assert own["text"] == text and own["variant"] == 0
    assert asked.captions.records == sources.captions.records
    with pytest.raises(InputError, match="rsrt would find its own words"):
        experiments.asked_with("rsrt", replace(sources, captioner="rsrt + style"))
    with pytest.raises(InputError, match="style would find its own words"):
        experiments.asked_with("style + query", replace(sources, captioner="rsrt + style"))


def test_steps_are_tuned_one_after_the_other(sources):
    table, chosen = experiments.tune(["hybrid+csls"], experiments.validation(sources))
    steps = table.groupby("step", sort=False)["method"].agg(list)
    assert list(steps.index) == ["hybrid", "csls"]
    best = table[table["step"] == "hybrid"]["mR"].idxmax()
    kept = table.loc[best, "method"].removesuffix("+csls")
    assert all(m.startswith(kept + "+csls(") for m in steps["csls"])
    assert chosen["hybrid+csls"].startswith(kept)


def test_the_validation_split_does_not_choose_for_itself(sources, data_dir):
    for split in ("val", "all"):
        with pytest.raises(MissingError, match="validation split itself"):
            experiments.validation(
                replace(sources, dataset=load_dataset("sample", str(data_dir), split))
            )
    with pytest.raises(MissingError, match=r"no captions by 'pixels' .* -p split val"):
        experiments.validation(replace(sources, captioner="pixels"))


def test_only_so_many_variants(sources):
    one = replace(sources, variants=1).embed_captions()
    assert set(one.rows["variant"]) == {0} and len(one.vectors) == len(one.rows) == 18


def test_another_captioner_asks_in_image_to_text(sources, tmp_path):
    other = write_captions(tmp_path / "others.jsonl", sources.dataset, every=2)
    asked = replace(sources, query_captioner=other)
    assert len(asked.gallery) == 9 < len(sources.gallery)
    ranks = retrieve("max", asked)[0].set_index("direction")
    alone = {  # the same gallery, described by one of them in both directions
        "t2i": retrieve("max", sources, images=asked.gallery)[0],
        "i2t": retrieve("max", replace(sources, captioner=other))[0],
    }
    for direction, expected in alone.items():
        expected = expected.set_index("direction").loc[direction]
        pd.testing.assert_frame_equal(ranks.loc[direction], expected)
    assert asked.setting != sources.setting
    assert rank_dataset("max", asked).identity != rank_dataset("max", sources).identity
    assert "asked by" in asked.described_by and asked.query_captioner == other
    assert replace(sources, query_captioner="openai:x").query_captioner == "query:openai:x"
    marked = replace(sources, captioner="rsrt + style", texts="plain")
    assert marked.described_by == "rsrt+style° (one_sentence+feature+caption)"


def test_texts_are_those_of_the_method_or_else_of_the_sources(sources):
    plain = replace(sources, texts="one_sentence")
    by_method = retrieve("texts(one_sentence)+max", sources)[0]
    pd.testing.assert_frame_equal(retrieve("max", plain)[0], by_method)
    back = retrieve("texts(joined)+max", plain)[0]
    pd.testing.assert_frame_equal(back, retrieve("max", sources)[0])
    settings = [replace(sources, texts=t).setting for t in ("caption,feature", "caption+feature")]
    assert len({*settings, sources.setting}) == 3
    rows = sources.embed_captions("one_sentence+caption,fields").rows
    assert rows.groupby(["image_id", "variant"]).size().unique().tolist() == [4]
    fields = {f: rows[rows["field"] == f]["text"].iloc[0] for f in ("one_sentence", "caption")}
    both = rows[rows["field"] == "one_sentence+caption"]["text"].iloc[0]
    assert both == f"{fields['one_sentence']}\n{fields['caption']}"


def test_captioners_are_compared_on_the_images_of_all(sources, tmp_path):
    few = write_captions(tmp_path / "few.jsonl", sources.dataset, every=2)
    others = write_captions(tmp_path / "others.jsonl", load_dataset("sample", split="train"))
    rules = ["max", "centroid", "max"]
    ranks, missing = experiments.compare_captioners([few, "pixels", others], sources, rules)
    assert list(ranks)[4:] == ["reference captions"] and "no captions by" in missing["pixels"]
    assert [name.rpartition(", ")[2] for name in ranks][:4] == ["max", "centroid"] * 2
    assert "none of its 42 images is in" in missing[others]
    images = set(sources.dataset.images["image_id"][::2])
    for rows in ranks.values():
        assert set(rows["image_id"]) == images
        assert rows.groupby("direction")["n_items"].first().to_dict() == {"i2t": 45, "t2i": 9}


def test_a_growing_gallery_passes_through_the_measured_one(sources):
    module = functions("04_evaluation_visualisation", "by_gallery_size")
    wider = sources.on("all")
    ranks = retrieve("max", wider, 1, queries=sources.gallery)[0]
    rows = ranks[ranks["direction"] == "t2i"]
    assert set(rows["n_items"]) == {210} and len(wider.gallery) == 210  # all splits are described
    assert set(rows["image_id"]) == set(sources.gallery)
    table = pd.DataFrame({k: module.by_gallery_size(ranks, [2, 18, 100, 210], k) for k in (1, 5)})
    assert (np.diff(table, axis=0) <= 1e-9).all()
    assert table[5].iloc[-1] == pytest.approx(evaluation.recall_at_k(rows, 5))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_of_real_architecture(kind, sources, models):
    """The vectors are those of the model's own forward pass; cached; all rules run on them."""
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    seen = replace(sources, clip=models[kind])
    images, reference = (vectors(seen, what) for what in ("images", "reference"))
    model, processor = (c.from_pretrained(models[kind]) for c in (AutoModel, AutoProcessor))
    inputs = processor(
        images=Image.open(seen.dataset.file_of(images.rows["image_id"][5]).path),
        text=[reference.rows["text"][7]],
        return_tensors="pt",
        padding="max_length",
        max_length=24,
        truncation=True,
    )
    with torch.inference_mode():
        out = model(**inputs)
    assert images.vectors[5] == pytest.approx(out.image_embeds[0].numpy(), abs=1e-5)
    assert reference.vectors[7] == pytest.approx(out.text_embeds[0].numpy(), abs=1e-5)
    assert (
        images.encoded == 18
        and vectors(replace(sources, clip=models[kind], _known={}), "images").encoded == 0
    )
    done, missing = experiments.rank_methods(
        ["clip", "fusion", "clip+csls", "clip+querybank", "centred+fusion(weight=0.2)"], seen
    )
    assert len(done) == 5 and not missing
    cosine = reference.vectors[0] @ images.vectors.T
    top = done["clip"].top
    assert top["score"].iloc[0] == pytest.approx(cosine.max(), abs=1e-6)
    assert len(Index(seen, "fusion").find("a river", 2).table) == 2
    assert len(Index(seen, "fusion").find(f"[{seen.gallery[0]}]", 2).table) == 2
    picture = seen.dataset.file_of(seen.gallery[1]).path
    found = Index(seen, "clip").find("any words", 1, picture=picture).table  # by its pixels
    assert found["image_id"][0] == seen.gallery[1] and found["score"][0] == pytest.approx(
        1, abs=1e-5
    )


def test_clip_needs_pixels_and_a_model_with_image_features(sources, models, tmp_path):
    images = sources.dataset.images.copy()
    images.loc[images.index[0], "path"] = ""
    blind = replace(sources, dataset=replace(sources.dataset, images=images), clip=models["clip"])
    _, missing = experiments.rank_methods(["clip"], blind)
    assert "1 of 18 images of the gallery have no pixels" in missing["clip"]
    with pytest.raises(InputError, match="is no CLIP"):
        ClipEncoder(embedded_minilm()).encode(["text"], "text")


def test_results_of_several_runs_join_into_one_table(sources, tmp_path):
    ranks = retrieve("max", sources)[0]
    result = {"max": evaluation.metrics(ranks), "csls†": evaluation.metrics(ranks)}
    for name in ("a", "b_c"):
        path = results.results_path(tmp_path / name / "derived", "test.pixels.e")
        about = {"dataset": name, "split": "test", "captioner": "pixels", "encoder": "e"}
        results.write_results(path, result, ranks, **about, inputs="")
    (path.parent / "old.json").write_text('{"other": 1}')
    (path.parent / "torn.json").write_text('{"meth')
    table, problems = results.summary(tmp_path)
    assert len(problems) == 2 and "torn.json is damaged" in problems[1]
    assert len(table) == 6 and table.index.names[0] == "dataset"
    csv, tex = results.export(table, tmp_path / "summary")
    read = pd.read_csv(csv)
    assert read["mR"].tolist() == table["", "mR"].tolist()
    text = tex.read_text()
    assert r"b\_c" in text and r"csls\dag{}" in text and "†" not in text and r"\toprule" in text


def test_published_results_are_sourced_and_add_up():
    for dataset, rows in {"rsitmd": 16, "rsicd": 16, "ucm": 4}.items():
        table = results.published(dataset)
        assert len(table) >= rows and table["source"].str.contains("arXiv|http").all()
        assert set(table["kind"]) <= {"supervised", "zero-shot", "training-free"}
        recalls = [c for c in table.columns if "_R@" in c]
        whole = table.dropna(subset=recalls)
        assert whole[recalls].mean(axis=1).to_numpy() == pytest.approx(whole["mR"], abs=0.011)
    assert results.published("rsitmd").set_index("method")["mR"]["TRSLLaVA (the paper)"] == 42.62
    assert results.published("sample").empty
    result = {
        "max": {d: {f"R@{k}": 99.0 for k in (1, 5, 10)} for d in ("t2i", "i2t")} | {"mR": 99.0}
    }
    assert results.published("rsicd", result)["method"][0] == "max"


def test_extremes_are_the_clearest_hits_and_the_farthest_misses(sources):
    ranks, top = retrieve("max", sources, 5)
    texts = caption_texts(sources.embed_reference())
    extremes = functions("04_evaluation_visualisation", "extremes").extremes
    successes, failures = extremes(ranks, top, texts, 4)
    same = dict.fromkeys(texts, "one text")
    assert [len(table) for table in extremes(ranks, top, same, 4)] == [1, 1]
    assert (successes["rank"] == 1).all() and successes["margin"].is_monotonic_decreasing
    assert failures["rank"].is_monotonic_decreasing and (failures["rank"] > 1).all()
    t2i = ranks[ranks["direction"] == "t2i"]
    assert failures["rank"].iloc[0] == evaluation.expected_rank(t2i).max()
    for found in (successes, failures):
        assert 0 < len(found) <= 4 and not found["image_id"].duplicated().any()
    best = top[(top["query_id"] == successes["query_id"].iloc[0]) & (top["direction"] == "t2i")]
    assert best["hit"].iloc[0]
    assert successes["margin"].iloc[0] == pytest.approx(-best["score"].diff().iloc[1])
