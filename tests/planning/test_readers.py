"""Shares of readers are those of the real loader."""

from __future__ import annotations

import numpy as np

from crate_graph.cluster.ranks import Ranks
from crate_graph.data import open_dataset
from crate_graph.planning.cache import cache_section
from crate_graph.planning.given import Given
from crate_graph.planning.hardware import Assumptions, find_device, find_network
from crate_graph.planning.readers import (
    know_split,
    open_data,
    shares,
    slots_that_fit,
    workers_that_fit,
    worlds_that_fit,
)
from crate_graph.planning.traffic import Cluster
from crate_graph.train.run import build_train_loader


def test_samples_and_shards_of_each_rank(small_recipe):
    recipe = small_recipe("crate", batch={"global_batch": 1000}, data={"slots": 8})
    dataset = open_dataset("fashion_mnist")
    split = know_split(dataset, "train")
    assert (split.samples, split.shards) == (10_000, 16)
    ends = np.cumsum(split.shard_samples)
    samples, shards = [], []
    for rank in range(4):
        loader = build_train_loader(recipe, dataset, Ranks(rank, 4, 0))
        read = np.concatenate([batch.samples.numpy() for batch in loader.epoch(0)])
        loader.close()
        samples.append(len(read))
        shards.append(len(set(np.searchsorted(ends, read, side="right"))))
    found = shares(recipe, split.shard_samples, 4)
    assert found.samples == (min(samples), max(samples)) == (2500, 2500)
    assert found.shards == (min(shards), max(shards))
    assert 4 <= found.shards[0] <= found.shards[1] <= 6  # a quarter of the ring of 16, and the shards at its ends


def test_a_split_without_its_shards():
    dataset = open_dataset("imagenet1k")
    assert know_split(dataset, "train").shards is None
    assumed = know_split(dataset, "train", shards=1000)
    assert sum(assumed.shard_samples) == assumed.samples == 1_281_167
    assert {min(assumed.shard_samples), max(assumed.shard_samples)} == {1281, 1282}


def test_remedies_are_remedies(small_recipe):
    recipe = small_recipe("crate", batch={"global_batch": 96}, data={"slots": 24, "workers": 5})
    assert workers_that_fit(recipe.data, 8) == 3
    assert workers_that_fit(recipe.data, 7) is None
    assert slots_that_fit(recipe, 16) is None  # 80 readers, and 80 does not divide 96
    assert slots_that_fit(recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 2})}), 16) == 32
    assert worlds_that_fit(recipe, 10) == (8, 12)
    assert worlds_that_fit(recipe, 97) == (96, None)


def test_a_split_at_an_address(small_recipe, tmp_path):
    """What its host cannot tell is taken from dataset.yaml, with a note, and the cache is planned all the same."""
    shards = open_dataset("fashion_mnist").root
    data = {"root": f"pipe:cat '{shards}'/{{}}", "cache": {"folder": str(tmp_path), "gigabytes": 1e-6}}
    given = given_by(small_recipe("crate", data=data))
    split = given.split
    assert (split.samples, split.shards, split.unread) == (10_000, 16, "")
    section, (finding,) = cache_section(given)
    figures = {figure.name: figure.value for figure in section.figures}
    assert figures["limit"] == figures["disk per node"] == 1000
    assert figures["training split"] == split.bytes == sum(split.shard_bytes)
    assert 4 * max(split.shard_bytes) <= figures["in use per node"] <= 16 * max(split.shard_bytes)  # four slots
    assert not finding.stops
    assert "the cache outgrows it; set it to" in finding.text

    data |= {"root": "pipe:false", "remote": {"retries": 0}}
    given = given_by(small_recipe("crate", data=data))
    assert given.split.samples == 10_000
    assert "planned from fashion_mnist/dataset.yaml" in cache_section(given)[1][0].text


def given_by(recipe):
    """On one host of two processes; nothing of it is traced."""
    dataset = open_data(recipe)
    cluster = Cluster(1, 2, find_device("h100"), find_network("ndr"), Assumptions())
    return Given(recipe, dataset, cluster, know_split(dataset, "train"), 4, 1, None, 0.0)
