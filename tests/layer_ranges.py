"""Layers divided by number alone, as tests want them: known beforehand for any model."""

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange


def split_evenly(num_layers: int, num_stages: int) -> list[LayerRange]:
    """Splits `num_layers` into contiguous ranges whose sizes differ by at most one, larger first.

    Raises:
        InvalidArgumentError: There are fewer layers than stages, or no stage.
    """
    if not 1 <= num_stages <= num_layers:
        raise InvalidArgumentError(
            f"{num_layers} layers cannot be split over {num_stages} stages", field="stages"
        )
    size, num_larger = divmod(num_layers, num_stages)
    ranges = []
    start = 0
    for index in range(num_stages):
        end = start + size + (index < num_larger)
        ranges.append(LayerRange(start, end))
        start = end
    return ranges
