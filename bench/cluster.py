"""Time and memory of clustering many profiles, with the number of clusters given, and chosen within a range.

    python bench/cluster.py [--profiles 100000] [--width 256] [--clusters 40]

Profiles are made about as many random directions as there are clusters, with noise as long as the direction itself.
Each measurement runs in a process of its own, so its peak memory is its own.
"""

import argparse
import multiprocessing
import time
from typing import Any

import torch
from machine import keep
from torch import Tensor
from torch.nn import functional as F

from fedgen.cluster import KMeans, ari, silhouette
from fedgen.run import peak_memory

RANGE = (2, 64)


def profiles(count: int, width: int, clusters: int) -> tuple[Tensor, Tensor]:
    """Vectors of length 1, and the cluster that each was made for."""
    draw = torch.Generator().manual_seed(0)
    middles = F.normalize(torch.randn(clusters, width, generator=draw), dim=1)
    whose = torch.randint(clusters, (count,), generator=draw)
    noise = torch.randn(count, width, generator=draw).div_(width**0.5)
    return F.normalize(noise.add_(middles[whose]), dim=1), whose


def one(rule: KMeans, shape: tuple[int, int, int], into: Any) -> None:
    """Cluster once; say how long it took, what it took in memory, and how good it was."""
    points, whose = profiles(*shape)
    before, began = peak_memory(), time.perf_counter()
    found = rule.group(points, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - began
    after = peak_memory()
    into.put(
        {
            "seconds": round(seconds, 2),
            "peak_memory_mb": round(after / 2**20, 1),
            "of_it_before_clustering_mb": round(before / 2**20, 1),
            "clusters": int(found.max()) + 1,
            "ari": round(ari(found, whose) or 0.0, 4),
            "silhouette": round(silhouette(points, found) or 0.0, 4),
        }
    )


def measured(rule: KMeans, shape: tuple[int, int, int]) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    into = spawn.Queue()
    process = spawn.Process(target=one, args=(rule, shape, into))
    process.start()
    found: dict[str, float] = into.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profiles", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=40)
    asked = parser.parse_args()
    shape = (asked.profiles, asked.width, asked.clusters)
    fewest, most = RANGE
    given = measured(KMeans(count=asked.clusters), shape)
    chosen = measured(KMeans(fewest=fewest, most=most), shape)
    made = {"profiles": shape[0], "width": shape[1], "made_clusters": shape[2], "range": list(RANGE)}
    keep("cluster", made | {"given": given, "chosen": chosen})


if __name__ == "__main__":
    main()
