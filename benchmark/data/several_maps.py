"""Stand-in for `batch.maps` of a method with several teachers: an object that says how to read them."""

from collections.abc import Sequence
from typing import Any, NoReturn

from ..core.errors import BenchError
from ..core.mask_guard import Withheld


class SeveralMaps(Withheld):
    """Stands for the maps of several teachers; any use raises BenchError naming them.

    It holds no map, so that it goes along whole when a batch is cut, copied or sent to another process.
    """

    what = "batch.maps"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def _deny(self, what: str) -> NoReturn:
        raise BenchError(
            f"There is no {what} of a method with several teachers ({', '.join(self.names)}): its maps are "
            f'batch.teachers["{self.names[0]}"] and so on.'
        )

    def __repr__(self) -> str:
        return f"<{self.what} of {', '.join(self.names)}: see batch.teachers>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.names,)
