"""Who is like whom: rules that group clients, centroids for who comes late, names that last, and how good it is."""

from fedgen.cluster.names import named
from fedgen.cluster.points import ROUGH, centroids, folded, nearest, plane, points_of_gram
from fedgen.cluster.quality import ari, nmi, silhouette
from fedgen.cluster.rules import Agglomerative, Clustering, Each, Hdbscan, KMeans, Losses, Nothing, Oracle, enough

__all__ = [
    "CLUSTERS",
    "ROUGH",
    "Agglomerative",
    "Clustering",
    "Each",
    "Hdbscan",
    "KMeans",
    "Losses",
    "Nothing",
    "Oracle",
    "ari",
    "centroids",
    "enough",
    "folded",
    "named",
    "nearest",
    "nmi",
    "plane",
    "points_of_gram",
    "silhouette",
]

CLUSTERS: dict[str, type[Clustering]] = {
    "none": Nothing,
    "kmeans": KMeans,
    "agglomerative": Agglomerative,
    "hdbscan": Hdbscan,
    "losses": Losses,
    "oracle": Oracle,
    "each": Each,
}
