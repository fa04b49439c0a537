"""Group ids (patients, slides) compared in a normalised form, so that 7, 007 and 7.0 are one patient."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"([^\W\d_]*)[ _-]?0*([0-9]+)(?:\.0+)?")
SHOWN = 5


def normal_group(text: str) -> str:
    """A group id in the form in which ids are compared.

    Unicode NFKC, no blanks around it and single ones inside, lower case; a plain number, or letters and a number, loses
    leading zeros, a decimal part of zeros and what joins the two: 7, 7.0 and 007 are one, and so are P7, p7, P-07 and
    P_7. Other ids, such as TCGA-02-0001 or patient_004_node_1, keep all their digits.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    number = _NUMBER.fullmatch(plain)
    return f"{number[1]}{number[2]}" if number else plain


def spellings(groups: Iterable[str]) -> dict[str, list[str]]:
    """Normalised form -> its spellings, for ids that are spelt in several ways."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        by_name[normal_group(group)].add(group)
    return {k: sorted(by_name[k], key=lambda s: (len(s), s)) for k in sorted(by_name) if len(by_name[k]) > 1}


def one_spelling(groups: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """For every id spelt in several ways the shortest of them, and a note that names what is taken for one."""
    several = list(spellings(groups).values())
    if not several:
        return {}, []
    some = "; ".join(", ".join(f"'{s}'" for s in spelled) for spelled in several[:SHOWN])
    more = f" (and {len(several) - SHOWN} more)" if len(several) > SHOWN else ""
    note = f"groups spelt in several ways are taken for one each: {some}{more}"
    return {spelling: spelled[0] for spelled in several for spelling in spelled}, [note]
