import gc

from stagecoach.process.lasting_objects import lasting_objects


def test_the_collector_spares_what_was_made_and_goes_on_as_before() -> None:
    thresholds, num_frozen = gc.get_threshold(), gc.get_freeze_count()
    made: list[list[int]] = []
    num_full = gc.get_stats()[2]["collections"]
    try:
        with lasting_objects():
            made += [[index] for index in range(500_000)]
            assert gc.get_stats()[2]["collections"] == num_full
        assert gc.get_threshold() == thresholds
        assert gc.get_freeze_count() > num_frozen + len(made)
    finally:
        gc.unfreeze()
