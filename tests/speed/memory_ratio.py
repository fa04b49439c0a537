"""Peak memory of scoring 16,000 images against 1,000, each the real command in a process of its own.

Both sides train the same tiny model first; they differ in the test set alone.

usage: python tests/speed/memory_ratio.py [--json]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SMALL, LARGE = 1000, 15664


def write_set(folder: Path, test: int, side: int = 64) -> Path:
    """A CSV dataset of square images, half of them declared maskless, with `test` different test images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["# name: many", "# classes: normal, tumor", "# positive: tumor", "# background: normal"]
    lines.append("id,image,mask,label,group,split")
    for split, count in (("train", 32), ("val", 16), ("test", test)):
        for k in range(count):
            name = f"{split}_{k}"
            noise = rng.integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(noise).resize((side, side)).save(folder / f"{name}.png", compress_level=1)
            if k % 2:
                mask = np.zeros((side, side), np.uint8)
                mask[k % 32 :, k % 48 :] = 255
                Image.fromarray(mask).save(folder / f"{name}_mask.png", compress_level=1)
            mask_name = f"{name}_mask.png" if k % 2 else ""
            lines.append(f"{name},{name}.png,{mask_name},{('normal', 'tumor')[k % 2]},{split}{k % 50},{split}")
    path = folder / "many.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def peak_mb(test: int, methods: str) -> float:
    """Peak resident size in MB of one `bench run` on a fresh folder."""
    with tempfile.TemporaryDirectory() as place:
        csv = write_set(Path(place) / "data", test)
        words = [
            "run", "--methods", methods, "--datasets", str(csv), "--backbones", "test_resnet", "--weights", "none",
            "--results", str(Path(place) / "results"), "--device", "cpu", "--preset", "smoke",
            "--set", "train.epochs=1", "--set", "train.image_size=224", "--set", "train.load_size=224",
            "--set", "train.stride=0",
        ]  # fmt: skip
        code = "import sys; from wsolbench.benchmark.cli import main; main(sys.argv[1:])"
        child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)  # of this child alone: getrusage keeps the highest of all
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"bench run ended with {child.returncode}")
    return used.ru_maxrss / 1024


def measure(large: int = LARGE, methods: str = "darkness,cam,layercam") -> dict[str, float]:
    """Peaks of both sides in MB and their ratio."""
    small = peak_mb(SMALL, methods)
    return {"small": SMALL, "large": large, "small_mb": small, "large_mb": (big := peak_mb(large, methods)),
            "ratio": big / small}  # fmt: skip


def main() -> None:
    """Prints the ratio."""
    from rows import Row, show  # the slow test imports `measure` from elsewhere

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure()
    row = Row(
        what=f"peak memory of scoring {found['large']} images",
        peer=f"{found['small']} images",
        ratio=found["ratio"],
        reach="<= 1.15",
        conditions={
            "device": "cpu", "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
            "backbone": "test_resnet", "size": 224, "batch": 32,
        },
        note=f"{found['large_mb']:.0f} against {found['small_mb']:.0f} MB",
    )  # fmt: skip
    show(row, options.json)


if __name__ == "__main__":
    main()
