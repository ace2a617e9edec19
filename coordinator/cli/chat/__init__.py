"""`coordinator-cli chat`: a conversation in the terminal, from a pipe, or as JSON.

`session` is the loop. It reads from an `input`, keeps a `conversation`, runs `commands`, and shows
what happens through a `view`; which of these a chat has is decided once, in `command`.
"""
