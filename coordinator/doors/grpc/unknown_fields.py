"""Refuses what a newer client sends and this version does not know."""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.version import __version__


def refuse_unknown_fields(message: Message, name: str) -> None:
    """Checks that this version knows every field of a message; not of the messages inside it.

    Args:
        message: What came.
        name: Name of the message, for the error.

    Raises:
        InvalidArgumentError: A field is unknown.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown) > 0:
        raise InvalidArgumentError(
            f"{name} has field number {unknown[0].field_number}, which version {__version__} "
            "does not know",
            field=name,
        )
