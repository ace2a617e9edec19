"""What a command says of an error that none of its parts foresaw."""


def in_words(error: BaseException) -> str:
    """Says what failed; an error of the operating system in the system's own words."""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the package {error.name} is not installed: pip install '.[coordinator]', '.[stage]' "
            "or '.[all]' in the clone brings what a server needs"
        )
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    if isinstance(error, OSError) and error.args:
        return str(error)
    reason = " ".join(str(error).split()) or "no reason is given"
    return f"failed unexpectedly: {reason} ({type(error).__name__})"
