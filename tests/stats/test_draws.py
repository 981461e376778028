"""The numbers drawn are part of stored runs: these are the ones that the constructions have always given."""

from __future__ import annotations

from carevl.stats.draws import hash_uniform, rng_for


def test_a_hash_gives_the_stored_numbers():
    assert hash_uniform(0, "item", (1, 0), "bare") == 0.3948190320244329
    assert hash_uniform() == 0.18055578953022788


def test_a_generator_gives_the_stored_numbers():
    assert rng_for(0, "key", (0, 1), 2).random() == 0.943185644246513
    assert rng_for(3).getrandbits(32) == 2363792084


def test_draws_depend_on_every_part():
    assert hash_uniform(0, "a") != hash_uniform(0, "b") != hash_uniform(1, "b")
    assert rng_for(0, "a").random() != rng_for(1, "a").random()
