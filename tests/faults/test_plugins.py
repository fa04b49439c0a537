"""Fault 20: whatever a plug-in does, only its runs fail, by name; the others have the numbers of a run without it."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.faults.matrix import METHODS as METHODS_OF_THE_MATRIX
from tests.faults.matrix import contents, steady
from tests.faults.plugins import explainer, trained
from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.planning.config import TrainConfig
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring.build import build_method
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest
from wsolbench.benchmark.scoring.method_sandbox import model_unchanged
from wsolbench.methods import METHODS
from wsolbench.reports.rows.load import load_rows


def short():
    """One epoch is enough to misbehave."""
    return {"train": {"epochs": "1"}}


IN_A_RUN = {  # explainers: what they do -> what is said of it
    "raises": ('raise KeyError("lost")', "raised KeyError: 'lost' in explain(), line"),
    "exits": ("sys.exit(0)", "called exit(0)"),
    "weights": ("evidence.explained.head.weight.data.mul_(1.5); return m", "parameters or buffers changed, first head"),
    "folder": ("os.chdir('/'); return m", "working folder from"),
    "signals": ("signal.signal(signal.SIGTERM, signal.SIG_IGN); return m", "signal handlers from"),
}
AT_ONCE = {  # the same, seen at the first batch
    "returns_none": ("return None", "returned NoneType as its map"),
    "wrong_shape": ("return m[:, None]", "returned a map of shape"),
    "wrong_device": ('return m.to("meta")', "returned its map on meta"),
    "whole_numbers": ("return (m * 100).int()", "returned a map of torch.int32; maps are floats"),
    "weights": IN_A_RUN["weights"],
    "hooks": ("evidence.explained.backbone.register_forward_hook(lambda *a: None); return m", "Hooks were left behind"),
    "mode": ("evidence.explained.train(); return m", "switched the model between train and eval mode"),
    "part_mode": ("evidence.explained.head.train(); return m", "train and eval mode, first head"),
    "no_grad": ("torch.set_grad_enabled(False); return m", "grad mode from True to False"),
    "dtype": ("torch.set_default_dtype(torch.float64); return m", "default dtype from torch.float32"),
    "deterministic": ("torch.use_deterministic_algorithms(True); return m", "deterministic algorithms from False"),
    "threads": ("torch.set_num_threads(torch.get_num_threads() + 1); return m", "threads from"),
    "folder": IN_A_RUN["folder"],
}
HARMLESS = {
    "prints": "print('HELLO'); return m",
    "draws": "torch.manual_seed(1); np.random.seed(1); random.seed(1); return m",
    "environ": "os.environ['HOME'] = '/nowhere'; return m",
    "even": "return m * 0",
}
TRAINING = {
    "in_init": ({"init": "raise KeyError('lost')"}, "raised KeyError: 'lost' in __init__(), line"),
    "in_loss": ({"loss": "raise KeyError('lost')"}, "raised KeyError: 'lost' in loss(), line"),
    "trains_on": ({"predict": "self.train()"}, "switched the model between train and eval mode"),
    "updates": ({"predict": "self.head.bias.data += 1"}, "parameters or buffers changed, first head.bias"),
    "settles": ({"setup": "torch.set_default_dtype(torch.float64)"}, "default dtype from torch.float32"),
    "pair": ({"predict": "return logits, maps"}, "predict() returned tuple, not Prediction"),
    "logits": ({"predict": "logits = logits[:, :1]"}, "gave logits"),
    "off": ({"loss": "torch.set_grad_enabled(False)"}, "grad mode from True to False"),
}  # fmt: skip


def numbers(store, keys):
    return {k: {n: a.tobytes() for n, a in read_npz(store.run_dir(k) / "scores.npz").items()} for k in keys}


def process():
    torch_says = torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    return *torch_says, torch.get_num_threads(), os.getcwd(), os.environ.get("HOME"), handlers  # noqa: PTH109


def said_of(plan, outcome):
    found = {}
    for key, error in outcome.failed.items():
        found.setdefault(plan.stages[key].labels["method"], set()).add(error)
    return found


@pytest.mark.parametrize("name", AT_ONCE)
def test_misbehaviour_is_seen_at_the_first_batch_and_undone(name, tmp_path):
    body, expected = AT_ONCE[name]
    METHODS.load_file(Path(explainer(tmp_path, f"once_{name}", body)))
    model = build_method(Resolver({}).ref("classifier"), "test_resnet", TrainConfig(stride=0), 2, 0).eval()
    reader = MapExtractor(model, (MapRequest(Resolver({}).ref(f"once_{name}"), "region"),), (0, 1), 2)
    before = process()
    with pytest.raises(BenchError, match=re.escape(expected)) as caught, model_unchanged(model):
        reader.read(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), ["a", "b"])
    assert "line " in str(caught.value) or f"once_{name}" in str(caught.value)
    assert process() == before


@pytest.mark.slow
def test_explainers_that_misbehave_fail_alone(world, tmp_path, capsys):
    before = process()
    plan, outcome = world.run("cam", overrides=short())
    alone = numbers(world.store, plan.rows)
    bad = [explainer(tmp_path, name, body) for name, (body, _) in IN_A_RUN.items()]
    fine = [explainer(tmp_path, name, body) for name, body in HARMLESS.items()]
    world.results = tmp_path / "together"
    plan, outcome = world.run(",".join(["cam", *bad, *fine]), overrides=short())
    assert outcome.exit_code == 1
    assert process() == before
    assert numbers(world.store, alone) == alone
    said = said_of(plan, outcome)
    assert set(said) == set(IN_A_RUN)
    for name, (_, expected) in IN_A_RUN.items():
        assert all(expected in error for error in said[name]), (name, said[name])
    unfinished = {plan.stages[k].labels["method"] for k in plan.rows if not world.store.is_done(k)}
    assert unfinished == set(IN_A_RUN)
    printed = capsys.readouterr()
    assert "HELLO" not in printed.out  # what `--json` prints stays JSON
    assert "HELLO" in printed.err
    constant = [k for k in plan.rows if plan.stages[k].labels["method"] == "even"]
    facts = [world.store.record(k)["facts"] for k in constant]
    assert all(f["degenerate"] == f["images"] for f in facts)  # counted, and no failure


TOGETHER = (*IN_A_RUN, *HARMLESS, "asks", "in_thread", "in_init", "in_loss", "trains_on", "batch_masks")


def test_the_command_goes_on_without_those_that_misbehave(matrix, reference, blobs, tmp_path):
    """One command: its own rows are, bit for bit, those of a command without any plug-in."""
    mask = blobs.parent / "test_01_mask.png"
    swallows = "\n    ".join(("def ask():", "    try: Image.open(MASK).load()", "    except Exception: pass"))
    thread = swallows + "\n    t = threading.Thread(target=ask); t.start(); t.join(); return m"
    files = [explainer(tmp_path, name, body) for name, (body, _) in IN_A_RUN.items()]
    files += [explainer(tmp_path, name, body) for name, body in HARMLESS.items()]
    files += [explainer(tmp_path, "asks", "return m * 0 + float(np.asarray(Image.open(MASK)).mean())", mask=mask)]
    files += [explainer(tmp_path, "in_thread", thread, mask=mask)]
    files += [trained(tmp_path, name, **TRAINING[name][0]) for name in ("in_init", "in_loss", "trains_on")]
    files += [trained(tmp_path, "batch_masks", loss="total = total + batch.masks.float().mean()")]
    done = matrix.run(tmp_path / "r", "--json", methods=",".join([*files[:9], METHODS_OF_THE_MATRIX, *files[9:]]))
    assert done.returncode == 1, done.stderr
    rows = json.loads(done.stdout)  # nothing that was printed is in it
    assert "HELLO" in done.stderr
    plain = METHODS_OF_THE_MATRIX.split(",")
    assert steady([r for r in rows if r["method"] in plain]) == reference.rows
    assert {r["method"] for r in rows} == {*plain, *HARMLESS}
    found = contents(tmp_path / "r")
    assert {key: found[key] for key in reference.contents} == reference.contents
    failures = [json.loads(p.read_text()) for p in (tmp_path / "r" / "runs").glob("*/failure.json")]
    said = {f["labels"]["method"]: f["error"] for f in failures}
    assert set(said) == set(TOGETHER) - set(HARMLESS)
    for name in ("asks", "in_thread", "batch_masks"):
        assert f"Method '{name}' asked for " in said[name]
        assert "line 10 of the contract" in said[name]
    for name, (_, expected) in {**IN_A_RUN, **{n: TRAINING[n] for n in ("in_init", "in_loss", "trains_on")}}.items():
        assert expected in said[name]


@pytest.mark.slow
def test_trained_methods_that_misbehave_fail_alone(world, tmp_path):
    before = process()
    plan, outcome = world.run("cam", overrides=short())
    alone = numbers(world.store, plan.rows)
    world.results = tmp_path / "together"
    files = [trained(tmp_path, name, **lines) for name, (lines, _) in TRAINING.items()]
    plan, outcome = world.run(",".join([*files, "cam"]), overrides=short())
    assert outcome.exit_code == 1
    assert process() == before
    assert numbers(world.store, alone) == alone
    said = said_of(plan, outcome)
    assert set(said) == set(TRAINING)
    for name, (_, expected) in TRAINING.items():
        assert any(expected in error for error in said[name]), (name, said[name])
    assert {r.method for r in load_rows(world.store)} == {"cam"}
