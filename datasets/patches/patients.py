"""Patients of slides, from a table or from the names of the slides, and the check that none is in two splits."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ...benchmark.core.errors import BenchError
from ..parts.identity import normal_group, spellings
from ..wsi.notes import name_some, some

# Names that carry the patient by the rules of their source; another name says nothing.
_PATIENTS = (
    re.compile(r"(patient_\d{3})_node_\d+", re.IGNORECASE),  # Camelyon17
    re.compile(r"(TCGA-[0-9A-Z]{2}-[0-9A-Z]{4})(?:[-._].*)?", re.IGNORECASE),  # TCGA: site and participant
    re.compile(r"(C3[LN]-\d{5})(?:[-._].*)?", re.IGNORECASE),  # CPTAC: case
    re.compile(r"(GTEX-[0-9A-Z]{4,5})(?:[-._].*)?", re.IGNORECASE),  # GTEx: donor
)


def patient_of(slide: str) -> str:
    """The patient that the name of a slide tells (Camelyon17, TCGA, CPTAC, GTEx), in one spelling; else empty."""
    patient = next((m[1] for p in _PATIENTS if (m := p.fullmatch(slide))), "")
    return patient.lower() if patient[:7].lower() == "patient" else patient.upper()


def is_camelyon17(slide: str) -> bool:
    """Whether a slide has a name of Camelyon17."""
    return _PATIENTS[0].fullmatch(slide) is not None


def group_slides(slides: Iterable[str], stated: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The group of every slide, and notes: its patient where the table or the name tells it, else the slide itself.

    stated: patients of a table, by slide. Ids that are spelt in several ways are one patient, as the notes say.
    Raises BenchError where the table parts slides that carry one patient in their names.
    """
    names = sorted(slides)
    patient = {s: stated.get(s) or patient_of(s) for s in names}
    notes: list[str] = []
    several = spellings(p for p in patient.values() if p)
    for spelled in several.values():
        notes.append(f"patients spelt in several ways are taken for one: {', '.join(spelled)}")
        patient = {s: spelled[0] if p in spelled else p for s, p in patient.items()}
    _check_names(names, patient)
    unknown = [s for s in names if not patient[s]]
    patients = {p for p in patient.values() if p}
    if patients:
        source = "the table" if stated else "the names"
        if stated and any(patient_of(s) and not stated.get(s) for s in names):
            source = "the table and the names"
        whose = some(len(patients), "patient")
        notes.append(f"group = patient: {some(len(names) - len(unknown), 'slide')} of {whose}, by {source}")
    if unknown:
        notes.append(
            f"group = slide: the patient of {some(len(unknown), 'slide')} is not known ({name_some(unknown, 3)}), so "
            "that two slides of one patient could stand in different splits. A column 'patient' in --splits tells them"
        )
    return {s: p or s for s, p in patient.items()}, notes


def shared_patients(slides: Iterable[tuple[str, str, str]]) -> str:
    """What to say of patients that stand in two splits, from (slide, group, split); empty if there are none."""
    by_patient: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    names: dict[str, str] = {}
    for slide, group, split in slides:
        if split:
            names[normal_group(group)] = group
            by_patient[normal_group(group)][split].append(slide)
    shared = {g: splits for g, splits in by_patient.items() if len(splits) > 1}
    if not shared:
        return ""
    named = []
    for key, splits in list(shared.items())[:5]:
        parts = "; ".join(f"{split}: {name_some(sorted(slides), 3)}" for split, slides in sorted(splits.items()))
        named.append(f"{names[key]} ({parts})")
    more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
    return (
        f"{some(len(shared), 'patient')} in two splits, so that a model would be tested on patients it "
        f"has seen: {' | '.join(named)}{more}. Keep all slides of a patient in one split of the --splits file."
    )


def _check_names(names: Sequence[str], patient: Mapping[str, str]) -> None:
    """Slides that their names give to one patient are not given to several by the table."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for slide in names:
        if own := patient_of(slide):
            by_name[own].add(normal_group(patient[slide]))
    parted = sorted(p for p, splits in by_name.items() if len(splits) > 1)
    if parted:
        raise BenchError(
            f"The --splits file gives slides of one patient to several: {name_some(parted)}, by the names of the "
            "slides. Correct its column 'patient', or leave it out."
        )
