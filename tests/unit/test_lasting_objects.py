import gc

from protos.lasting_objects import lasting_objects


def test_the_collector_spares_what_was_made() -> None:
    num_frozen = gc.get_freeze_count()
    try:
        with lasting_objects():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > num_frozen
    finally:
        gc.unfreeze()
