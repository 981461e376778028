"""Objects that settings name: those that are registered, by name, and a user's own, by import path.

```python
SUITES = Registry("benchmark", Suite, (vl_rewardbench.SUITE, mllm_judge.SUITE))
SUITES["vl-rewardbench"]          # registered
SUITES["my_package.suites:MINE"]  # imported, in the driver and in every fresh actor alike
```
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, cast

from carevl.errors import SettingsError, suggest


class Named(Protocol):
    """An object with the name that settings call it by."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """Objects of one kind by name, in the order in which they are listed.

    Args:
        kind: what they are, for messages: `benchmark`, `engine`.
        base: the class that a user's own object has to be an instance of; a class named in its place is called once,
            without arguments.
        members: the registered objects.
    """

    def __init__(self, kind: str, base: type, members: Iterable[T]) -> None:
        self.kind, self.base = kind, base
        self._members = {member.name: member for member in members}

    def __getitem__(self, name: str) -> T:
        """Return the object of a name or of an import path `package.module:Name`.

        Raises:
            SettingsError: nothing is registered by that name, or there is no such object to import.
        """
        if name in self._members:
            return self._members[name]
        if ":" in name:
            return self._import(name)
        hint = suggest(name, self._members, f"there are {', '.join(self._members)}")
        raise SettingsError(f"there is no {self.kind} {name!r}; {hint} (or give your own as package.module:Name)")

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def _import(self, path: str) -> T:
        imported = import_object(path, self.kind)
        member: Any = imported
        if isinstance(imported, type) and issubclass(imported, self.base):
            try:
                member = imported()
            except TypeError as error:  # abstract methods that are missing, or arguments that nobody gives
                raise SettingsError(f"{self.kind} {path}: {error}") from error
        if not isinstance(member, self.base):
            raise SettingsError(
                f"{self.kind} {path}: it is no carevl {self.base.__name__}, but {type(member).__name__}"
            )
        return cast("T", member)


def import_object(path: str, kind: str) -> Any:
    """Return the object at `package.module:Name`.

    Raises:
        SettingsError: the module cannot be imported, or has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise SettingsError(
            f"{kind} {path}: {module} cannot be imported ({error}); it has to be on every node"
        ) from error
    except AttributeError:
        raise SettingsError(f"{kind} {path}: {module} has no {name}") from None
