"""The whole path on real GlaS with weights from another colorectal set: minutes, so behind the marker `slow`."""

import json
import subprocess
import sys

import pytest
import torch

BENCH = [sys.executable, "-c", "from wsolbench.benchmark.cli import main; main()"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_glas_fold_0_comes_out_in_the_right_order(shared_data, shared_weights, tmp_path):
    subprocess.run([sys.executable, shared_data / "unpack_glas.py", tmp_path / "data"], check=True, capture_output=True)
    done = subprocess.run(
        [*BENCH, "run", "--methods", "layercam,pixelcam,unet,constant", "--datasets", "glas", "--backbones", "resnet18",
         "--weights", shared_weights, "--data-root", tmp_path / "data", "--results", tmp_path / "results", "--json",
         "--preset", "quick", "--set", "train.epochs=15", "--set", "train.step_epochs=10",
         "--set", "train.precision=bf16", "--device", "cuda" if torch.cuda.is_available() else "cpu"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows = {(r["method"], r["selection"]): r for r in json.loads(done.stdout)}
    pxap = {m: rows[m, "cl"]["pxap"] for m in ("layercam", "pixelcam", "unet")}
    assert rows["constant", "-"]["pxap"] == pytest.approx(51.2, abs=0.05)
    assert rows["constant", "-"]["chance"] == pytest.approx(rows["constant", "-"]["pxap"])
    assert rows["layercam", "cl"]["accuracy"] > 80
    assert 54 < pxap["layercam"] < pxap["unet"]
    assert 54 < pxap["pixelcam"] < pxap["unet"]
    assert pxap["unet"] > 80
