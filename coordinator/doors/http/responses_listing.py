"""A page of the items of a conversation."""

from collections.abc import Iterator, Mapping, Sequence

from coordinator.doors.http.pieces import spliced
from coordinator.doors.http.responses_items import Item
from coordinator.doors.http.schema.responses import MAX_ID_CHARS
from coordinator.doors.http.schema.responses_answer import InputItemList
from stagecoach.contract.errors import InvalidArgumentError

MAX_LISTED = 100
_DEFAULT_LISTED = 20
_MAX_DIGITS = 4
_ORDERS = ("asc", "desc")

QUERY: Sequence[Mapping[str, object]] = (
    {
        "name": "limit",
        "in": "query",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_LISTED,
            "default": _DEFAULT_LISTED,
        },
    },
    {
        "name": "order",
        "in": "query",
        "schema": {"type": "string", "enum": list(_ORDERS), "default": "desc"},
    },
    {
        "name": "after",
        "in": "query",
        "description": "Id of the item that the page follows.",
        "schema": {"type": "string", "maxLength": MAX_ID_CHARS},
    },
)
"""What may be asked of a page, in the words of OpenAPI."""


def listed_page(items: Sequence[Item], query: Mapping[str, str]) -> Iterator[str]:
    """Writes a page as JSON, in pieces.

    Args:
        items: All of them, oldest first.
        query: What is asked of the page.

    Raises:
        InvalidArgumentError: It asks for what is not there.
    """
    limit = _limit(query.get("limit"))
    order = query.get("order", "desc")
    if order not in _ORDERS:
        raise InvalidArgumentError(
            f"order is {order[:MAX_ID_CHARS]!r}, must be one of {', '.join(_ORDERS)}",
            field="order",
        )
    ordered = items if order == "asc" else items[::-1]
    after = query.get("after")
    if after is not None:
        place = next((i for i, item in enumerate(ordered) if item.id == after), None)
        if place is None:
            raise InvalidArgumentError(
                f"after is {after[:MAX_ID_CHARS]!r}, which is no item of this response",
                field="after",
            )
        ordered = ordered[place + 1 :]
    page = ordered[:limit]
    frame = InputItemList(
        data=[],
        first_id=(page[0].id if page else None) or "",
        last_id=(page[-1].id if page else None) or "",
        has_more=len(ordered) > len(page),
    )
    return spliced(frame.model_dump_json(), [("data", _inside(page))])


def _inside(page: Sequence[Item]) -> Iterator[str]:
    for index, item in enumerate(page):
        yield f",{item.text}" if index else item.text


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LISTED
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not (is_number and 1 <= int(text) <= MAX_LISTED):
        raise InvalidArgumentError(
            f"limit is {text[:MAX_ID_CHARS]!r}, must be from 1 to {MAX_LISTED}", field="limit"
        )
    return int(text)
