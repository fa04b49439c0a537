"""`bench data split`: no patient in two splits, classes in proportion, rows that name a split kept."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsolbench.benchmark.cli.data.verbs import data
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.datasets.csv_manifest import CsvDataset
from wsolbench.datasets.parts.folds import divide_by_weight
from wsolbench.datasets.parts.split_table import SplitRequest, split_table

HEAD = "# background: normal\n"


def write(folder: Path, rows: list[dict[str, str]], head: str = HEAD, name: str = "mine.csv") -> Path:
    """A table without the column split unless a row has it; images are made, each with pixels of its own."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / name).open("w", encoding="utf-8", newline="") as handle:
        handle.write(head)
        writer = csv.DictWriter(handle, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for k, row in enumerate(rows):
        if not (folder / row["image"]).exists():
            Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(folder / row["image"])
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / "m.png")
    return folder / name


def rows(patients: int = 20, images: int = 3, **more: str) -> list[dict[str, str]]:
    found = []
    for p in range(patients):
        for k in range(images + p % 2):
            tumour = (p + k) % 2 == 1
            found.append(
                {"image": f"i{p}_{k}.png", "mask": "m.png" if tumour else "", "label": ("normal", "tumour")[tumour]}
                | {"group": f"p{p}"} | more
            )  # fmt: skip
    return found


def divide(table: Path, **request):
    return split_table(SplitRequest(table, table.parent, **request))


def splits_of_groups(path: Path, fold: str = "0") -> dict[str, set[str]]:
    found = defaultdict(set)
    for item in CsvDataset(path, path.parent).manifest(fold).items:
        found[item.group].add(item.split)
    return found


def test_groups_stay_together_and_shares_are_met(tmp_path):
    table = write(tmp_path, rows())
    report = divide(table)
    assert report.path == tmp_path / "mine-split.csv"
    assert all(len(s) == 1 for s in splits_of_groups(report.path).values())
    (fold,) = report.folds
    sizes = {split: sum(counts.values()) for split, counts in fold.images.items()}
    assert sum(sizes.values()) == 70
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        for label, images in (("normal", 40), ("tumour", 30)):
            assert fold.images[split][label] == pytest.approx(share * images, abs=1)
    assert report.notes == ()


def test_same_table_and_seed_same_file_and_another_seed_another(tmp_path):
    table = write(tmp_path, rows())
    texts = [divide(table, seed=s, out=tmp_path / f"{k}.csv").path.read_text() for k, s in enumerate((0, 0, 1))]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("fixed", [False, True])
def test_folds_each_part_once(tmp_path, fixed):
    table = rows()
    if fixed:
        for row in table:
            row["split"] = "test" if row["group"] in ("p0", "p1", "p2") else ""
    report = divide(write(tmp_path, table), folds=4)
    assert [f.fold for f in report.folds] == ["0", "1", "2", "3"]
    held = [splits_of_groups(report.path, str(k)) for k in range(4)]
    for group in held[0]:
        seen = [min(h[group]) for h in held]
        if fixed and group in ("p0", "p1", "p2"):
            assert seen == ["test"] * 4
        else:
            assert sorted(seen) == sorted(["train"] * (3 if fixed else 2) + ["val"] + ["test"] * (not fixed))
    if fixed:  # the test rows stand there once
        assert sum(r.cells["split"] == "test" for r in CsvDataset(report.path, tmp_path).rows) == 10


def test_rows_that_name_a_split_keep_it_and_their_group_follows(tmp_path):
    table = rows()
    for row in table:
        row["split"] = "Test" if row["group"] in ("p3", "p4", "p5") else "nan"
    table[table.index(next(r for r in table if r["group"] == "p3"))]["split"] = ""
    report = divide(write(tmp_path, table))
    held = splits_of_groups(report.path)
    assert {g for g, s in held.items() if s == {"test"}} == {"p3", "p4", "p5"}
    assert any("1 row without a split" in note for note in report.notes)


def test_spellings_and_identical_images_stay_together(tmp_path):
    table = rows()
    for row, name in zip([r for r in table if r["group"] == "p7"], ("P7", "p-07", "p007"), strict=False):
        row["group"] = name
    path = write(tmp_path, table)
    for k in range(3):  # p0 and p19 share an image, p19 and p12 another, so that the three are one
        Image.fromarray(np.full((4, 4, 3), 200 + k, np.uint8)).save(tmp_path / f"same{k}.png")
    (tmp_path / "i0_0.png").write_bytes((tmp_path / "same0.png").read_bytes())
    (tmp_path / "i19_1.png").write_bytes((tmp_path / "same0.png").read_bytes())
    (tmp_path / "i19_0.png").write_bytes((tmp_path / "same1.png").read_bytes())
    (tmp_path / "i12_1.png").write_bytes((tmp_path / "same1.png").read_bytes())
    for seed in range(4):
        report = divide(path, seed=seed, out=tmp_path / f"s{seed}.csv")
        held = splits_of_groups(report.path)
        assert all(len(s) == 1 for s in held.values())
        assert len({min(held[g]) for g in ("p0", "p19", "p12")}) == 1
        assert any("'P7'" in n and "'p-07'" in n for n in report.notes)
        assert any("i19_1.png = i0_0.png" in n for n in report.notes)


def test_unknown_groups_are_divided_by_image_and_said(tmp_path):
    table = [{k: v for k, v in row.items() if k != "group"} for row in rows()]
    report = divide(write(tmp_path, table, HEAD + "# groups: unknown\n"), val=0.1, test=0.3)
    counts = {split: sum(c.values()) for split, c in report.folds[0].images.items()}
    assert counts == {"train": 42, "val": 7, "test": 21}
    assert any("a patient may be in several splits" in note for note in report.notes)


def test_other_columns_settings_and_odd_cells_are_kept(tmp_path):
    table = rows(site='Köln, "Süd"')
    table[0] = {"": "0", "id": "#first"} | table[0]
    table[1:] = [{"": str(k), "id": f"x{k}"} | row for k, row in enumerate(table[1:], start=1)]
    path = write(tmp_path, table, "\ufeff# background: normal\n# licence: CC0\n# a remark\n")
    report = divide(path)
    written = CsvDataset(report.path, tmp_path)
    assert written.card.licence == "CC0"
    assert {i.id for i in written.manifest("0").items} == {"#first", *(f"x{k}" for k in range(1, 70))}
    assert all(r.extra == (("site", 'Köln, "Süd"'),) for r in written.rows)


def change(**cells: str):
    return [row | cells for row in rows()]


REFUSED = {
    "two splits of a group": ([r | {"split": ("train", "test")[k % 2]} for k, r in enumerate(rows())],
                              {}, "line 3 .*train.* and line 4 .*test.*two splits"),
    "nothing to divide": (change(split="train"), {}, "Every row belongs to a split"),
    "an unknown split": (change(split="hold-out"), {}, "line 3: split 'hold-out' is not one of"),
    "folds already": (change(fold="1"), {}, "has folds already"),
    "pixel_val without split": (change(pixel_val="1"), {}, "line 3: pixel_val is set, but no split"),
    "no patient known": (change(group=""), {}, "groups: unknown"),
    "too few patients": (rows(2), {}, "no division gives every class to each of train, val, test; .*tumour 2"),
    "folds of few patients": (rows(3), {"folds": 5}, "each of 5 parts"),
    "folds and shares": (rows(), {"folds": 3, "val": 0.1}, "leave out --val and --test"),
    "two folds": (rows(), {"folds": 2}, "at least 3 parts"),
    "nothing to train on": (rows(), {"val": 0.5, "test": 0.5}, "leave some to train on"),
    "no test set": (rows(), {"test": 0.0}, "--test 0 leaves no test set"),
    "no dataset": ([r | {"pixel_val": "perhaps"} for r in rows()], {}, "be no dataset: .*mine-split.csv, line"),
    "another folder": (rows(), {"out": Path("elsewhere.csv")}, "lies in another folder"),
    "no csv": (rows(), {"out": Path("mine.txt")}, "ends in .csv"),
    "no masks for test": ([r | {"mask": ""} for r in rows()], {}, "30 images without a mask, the first in line 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_written(tmp_path, name):
    table, request, message = REFUSED[name]
    path = write(tmp_path, table)
    with pytest.raises(BenchError, match=message):
        divide(path, **request)
    assert [p.name for p in tmp_path.glob("*.csv")] == ["mine.csv"]


def test_an_existing_file_and_missing_images_are_refused(tmp_path):
    path = write(tmp_path, rows())
    (tmp_path / "i3_1.png").unlink()
    with pytest.raises(BenchError, match=r"1 of \d+ files are missing, the first: .*i3_1.png"):
        divide(path)
    with pytest.raises(BenchError, match="nothing is overwritten"):
        divide(path, out=path)


def test_who_lacks_a_split_is_told_of_the_verb(tmp_path):
    with pytest.raises(BenchError, match=r"column split is missing. To have .* bench data split"):
        CsvDataset(write(tmp_path, rows()), tmp_path)
    path = write(tmp_path, [row | {"split": ""} for row in rows()])
    with pytest.raises(BenchError, match=r"line 3: split '' is not one of .* bench data split"):
        CsvDataset(path, tmp_path).manifest("0")


def test_the_command(tmp_path):
    path = write(tmp_path, rows())
    words = ["split", str(path), "--data-root", str(tmp_path)]
    out = CliRunner().invoke(data, words).stdout
    assert "split  normal  tumour  all  groups" in out
    assert "mine-split.csv" in out
    found = json.loads(CliRunner().invoke(data, [*words, "--out", str(tmp_path / "b.csv"), "--json"]).stdout)
    assert sum(sum(c.values()) for c in found["folds"][0]["images"].values()) == 70
    assert isinstance(CliRunner().invoke(data, words).exception, BenchError)


def test_parts_by_weight_come_out_as_a_search_of_all_divisions_finds(tmp_path):
    import itertools

    sizes = {"a": (4, 0), "b": (1, 3), "c": (2, 2), "d": (0, 4), "e": (3, 1), "f": (2, 2), "g": (1, 1)}
    images = [(label, g) for g, counts in sizes.items() for label, n in enumerate(counts) for _ in range(n)]
    weights = (0.6, 0.2, 0.2)

    def cost(part):
        totals = np.zeros((3, 2))
        for g, p in part.items():
            totals[p] += sizes[g]
        goal = np.outer(weights, np.sum(list(sizes.values()), axis=0))
        return float((((totals - goal) / goal) ** 2).sum())

    best = min(cost(dict(zip(sizes, p, strict=True))) for p in itertools.product(range(3), repeat=7))
    part, complete = divide_by_weight(images, weights)
    assert complete
    assert cost(part) <= best + 0.15
