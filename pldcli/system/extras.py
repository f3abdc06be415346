"""Libraries that not everyone needs: extras of the package."""

from __future__ import annotations

from importlib import import_module

from pldcli.errors import UsageError

__all__ = ["require"]


def require(module: str, *, extra: str, where: str) -> None:
    """Import a library, or say how to get it.

    Args:
        module: Its name.
        extra: That of the package which brings it.
        where: The option that needs it.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise UsageError(f"needs {module}", where=where, hint=f"pip install 'pldcli[{extra}]'") from error
