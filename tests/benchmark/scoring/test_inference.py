"""The passes of scoring: what they keep of a large set while they run."""

import torch

from wsolbench.benchmark.core.files import file_sha256
from wsolbench.benchmark.core.protocols import get_protocol
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.data.image_cache import DecodeRequest, ImageCache
from wsolbench.benchmark.planning.method_refs import Resolver
from wsolbench.benchmark.scoring import inference
from wsolbench.benchmark.scoring.inference import PassSettings, PixelMasks, Task, validation_pass
from wsolbench.benchmark.scoring.map_extractor import MapExtractor, MapRequest
from wsolbench.datasets.csv_manifest import CsvDataset


def test_validation_keeps_the_maps_it_needs_and_not_their_batches(blobs, tmp_path, monkeypatch):
    dataset = CsvDataset(blobs, tmp_path)
    items = tuple(dataset.manifest("0").items)
    cache = ImageCache(Store(tmp_path / "r"), dataset, {str(i.image): file_sha256(i.image) for i in items})
    cache.prepare([DecodeRequest(items, 32)])
    seen = []
    honest = inference.scale_constants
    monkeypatch.setattr(inference, "scale_constants", lambda maps, q: seen.extend(maps) or honest(maps, q))
    ref = Resolver({}).ref("darkness")
    task = Task(MapRequest(ref, "any"), get_protocol("fair", scale_images=3))
    reader = MapExtractor(None, (task.view,), (0, 1), 2)
    _, scored = validation_pass(
        reader, [task], cache.frames(items, 32), PixelMasks(), PassSettings(torch.device("cpu"), 16)
    )
    assert scored[task.name].scale.low < scored[task.name].scale.high
    assert len(seen) == 3
    assert all(m.untyped_storage().nbytes() == m.numel() * m.element_size() for m in seen)
