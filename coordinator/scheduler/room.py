"""The room for requests that wait."""

from stagecoach.contract.errors import QueueFullError


def check_room(num_waiting: int, max_num_waiting: int) -> None:
    """Refuses one more request than may wait.

    Raises:
        QueueFullError: So many wait already.
    """
    if num_waiting >= max_num_waiting:
        raise QueueFullError(
            f"{num_waiting} requests are waiting, the limit is {max_num_waiting}",
            num_waiting=num_waiting,
            max_num_waiting=max_num_waiting,
        )
