"""The option `--batch`, as several commands take it."""

from stagecoach.contract.errors import InvalidArgumentError


def read_batch_sizes(text: str) -> tuple[int, ...]:
    """Reads a list of batch sizes, such as `1,2,4,8`.

    Raises:
        InvalidArgumentError: It is not a list of positive numbers.
    """
    sizes = text.split(",")
    if not all(size.isascii() and size.isdigit() and 0 < int(size) <= 65536 for size in sizes):
        raise InvalidArgumentError(
            f"batch {text!r} is not a list of numbers from 1 to 65536, such as 1,2,4,8",
            field="batch",
        )
    return tuple(map(int, sizes))
