"""The one error that users are meant to read: bad input, told in one sentence."""


class InputError(Exception):
    """Something the user gave cannot be used; the message is one sentence naming it and what is allowed."""
