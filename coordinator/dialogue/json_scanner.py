"""Finds where a JSON value ends in a text that arrives in pieces."""


class JsonScanner:
    """Follows one value, of which it is known that it is well formed.

    Whitespace before the value belongs to it.
    """

    def __init__(self) -> None:
        self.is_done = False
        """True once the value has ended."""
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._in_scalar = False

    def push(self, text: str) -> int:
        """Takes more text.

        Returns:
            How many of its characters belong to the value. All, unless it `is_done` then.
        """
        for position, char in enumerate(text):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
                self.is_done = not self._in_string and not self._depth
            elif self._in_scalar and (char.isalnum() or char in "+-."):
                continue
            elif self._in_scalar and not self._depth:
                self.is_done = True
                return position
            else:
                self._begin(char)
            if self.is_done:
                return position + 1
        return len(text)

    def finish(self) -> None:
        """Tells that no more text comes; a number may end so."""
        self.is_done = self.is_done or (self._in_scalar and not self._depth)

    def _begin(self, char: str) -> None:
        self._in_scalar = False
        if char == '"':
            self._in_string = True
            self._is_escaped = False
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.is_done = not self._depth
        elif char.isalnum() or char == "-":
            self._in_scalar = True
