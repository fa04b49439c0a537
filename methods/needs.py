"""What a method builds on: `Need(role, method, …)`, or the same as a short text such as `maps:layercam`."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..benchmark.core.errors import BenchError

ROLES = ("checkpoint", "init", "maps", "source")
CLASSES, SETS = ("true", "pred"), ("train", "target")  # of teacher maps
FORM = "ROLE:METHOD or ROLE@NAME:METHOD, as in 'maps:layercam' or 'maps@first:cam'"
_TEXT = re.compile(
    r"(?P<role>[^\s():@]+)(?:\((?P<words>[^():@]*)\))?(?:@(?P<name>[^\s():@]+))?:(?P<method>[^\s():@][^\s()]*)"
)


class Need(NamedTuple):
    """A stage a method builds on; in a decorator written with literals, as in Need("maps", "cam", classes="pred").

    role: one of ROLES. method: whose model or maps; `{option}` stands for an option's value. name: tells it from others
    of its role; the method's own where none is given. classes: of teacher maps the class they are of, an image's `true`
    label or the one that is predicted, `pred`. on: the images they are of, those of `train` or of the `target` of an
    adapter.
    """

    role: str
    method: str
    name: str = ""
    classes: str = "true"
    on: str = "train"


def parse_need(text: str) -> Need:
    """`role:method` or `role@name:method`; a method's name may hold a colon itself.

    Behind a role may stand how its maps are made, as in `maps(pred):cam` or `maps(pred,target)@first:cam`. Raises
    BenchError for a text of another form, and for a word that says nothing of maps.
    """
    parts = _TEXT.fullmatch(text)
    if parts is None or "@@" in text or text[-1] in ":@":
        raise BenchError(f"needs '{text}', which is not {FORM}.")
    form: dict[str, str] = {}
    for word in (w.strip() for w in parts["words"].split(",")) if parts["words"] is not None else ():
        place = "classes" if word in CLASSES else "on" if word in SETS else ""
        if not place:
            raise BenchError(f"needs '{text}', where '{word}' is none of {', '.join((*CLASSES, *SETS))}.")
        if place in form:
            raise BenchError(f"needs '{text}', where '{form[place]}' and '{word}' answer the same question.")
        form[place] = word
    return Need(parts["role"], parts["method"], parts["name"] or parts["method"], **form)


def need_text(need: Any) -> str:
    """A need as text, whichever way it was written. Raises BenchError for what is none."""
    if isinstance(need, str):
        return need
    if not isinstance(need, Need) or not all(isinstance(part, str) for part in need):
        raise BenchError(
            f'needs {need!r}, which is neither a text such as \'maps:layercam\' nor Need("maps", "layercam").'
        )
    if need.classes not in CLASSES or need.on not in SETS:
        word, allowed = (need.on, SETS) if need.classes in CLASSES else (need.classes, CLASSES)
        raise BenchError(f"needs {need!r}, where '{word}' is none of {', '.join(allowed)}.")
    words = [word for word in (need.classes, need.on) if word not in ("true", "train")]
    name = f"@{need.name}" if need.name and need.name != need.method else ""
    text = f"{need.role}{'(' + ','.join(words) + ')' if words else ''}{name}:{need.method}"
    if parse_need(text) != need._replace(name=need.name or need.method):
        raise BenchError(f"needs {need!r}, a part of which holds a sign that separates parts (: @ brackets, blanks).")
    return text


def placeholders(text: str) -> tuple[str, ...]:
    """Options whose values stand in a need, as in `maps:{teacher}`. Raises BenchError for brackets of another use."""
    if re.search("[{}]", re.sub(r"\{\w+\}", "", text)):
        raise BenchError(f"needs '{text}': curly brackets hold the name of an option, as in 'maps:{{teacher}}'.")
    return tuple(re.findall(r"\{(\w+)\}", text))


def twins(needs: Iterable[Need]) -> str:
    """What is wrong with needs of which two of one role have one name, as the end of a sentence; or nothing."""
    counts = Counter((need.role, need.name) for need in needs)
    doubled = [place for place, count in counts.items() if count > 1]
    if not doubled:
        return ""
    role, name = doubled[0]
    return (
        f"needs two stages '{role}:{name}' that nothing tells apart. Name them in `needs`, as "
        f"'{role}@first:{name}' and '{role}@second:…'."
    )
