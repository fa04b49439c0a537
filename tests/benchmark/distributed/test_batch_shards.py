"""Batches cut in parts for memory, and each part among processes."""

import pytest
import torch

from wsolbench.benchmark.distributed.batch_shards import cut_batch


@pytest.mark.parametrize("count, most, size", [(10, 0, 1), (10, 4, 1), (10, 4, 3), (7, 2, 2), (5, 5, 4), (1, 3, 1)])
def test_pieces_are_those_of_tensor_split_whatever_the_number_of_processes(count, most, size):
    places = torch.arange(count)
    parts = places.tensor_split(-(-count // most) if most and most < count else 1)
    for rank in range(size):
        cut = cut_batch(count, most, rank, size)
        assert [places[p.whole].tolist() for p in cut] == [p.tolist() for p in parts]
        assert [places[p.own].tolist() for p in cut] == [p.tensor_split(size)[rank].tolist() for p in parts]
        assert [p[piece.within].tolist() for p, piece in zip(parts, cut, strict=True)] == [
            places[p.own].tolist() for p in cut
        ]
