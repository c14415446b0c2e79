"""Counts of batches add up in order; test_parallel.py adds them up over real ranks."""

from mode_ray.train.step.batch_counts import LEDGER_MODULUS, BatchCounts, all_gather_sum


def test_counts_add_up_and_the_first_bad_image_stays_the_first() -> None:
    first, second = BatchCounts(1, "a.tar: sample 3: damaged", 5), BatchCounts(2, "b.tar: sample 0: damaged", 7)
    assert first + second == BatchCounts(3, "a.tar: sample 3: damaged", 12)
    assert BatchCounts() + second == second
    assert (first + BatchCounts()).first_bad_image == first.first_bad_image


def test_ledgers_add_up_modulo_2_to_the_63() -> None:
    assert (BatchCounts(ledger=LEDGER_MODULUS - 1) + BatchCounts(ledger=3)).ledger == 2


def test_one_rank_has_nothing_to_gather() -> None:
    assert all_gather_sum(BatchCounts(1, "a.tar", 5), world_size=1) == BatchCounts(1, "a.tar", 5)
