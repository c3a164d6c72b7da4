"""
Named protocols: how a benchmark filters a log, and the statistics that were published for its categories.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Protocol:
    """
    How a benchmark makes its splits. All are leave-last-out with full ranking and unfiltered histories.

    Fields are arguments of [`~prepare.prepare`]; `known_statistics` has the published users, items and interactions of
    each category.
    """

    name: str
    k_core: int = 0
    deduplicate: bool = False
    min_history: int = 0
    ascii_only: bool = False
    known_statistics: dict[str, tuple[int, int, int]] = field(default_factory=dict)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("custom"),
        Protocol(
            "amazon2014",
            k_core=5,
            ascii_only=True,
            known_statistics={
                "Beauty": (22_363, 12_101, 198_502),
                "Sports_and_Outdoors": (35_598, 18_357, 296_337),
                "Toys_and_Games": (19_412, 11_924, 167_597),
                "CDs_and_Vinyl": (75_258, 64_443, 1_097_592),
            },
        ),
        Protocol("amazon2018", k_core=5, ascii_only=True),
        Protocol(
            "amazon2023",
            k_core=5,
            ascii_only=True,
            deduplicate=True,
            known_statistics={
                "All_Beauty": (253, 356, 2_535),
                "Musical_Instruments": (57_439, 24_587, 511_836),
                "Industrial_and_Scientific": (50_985, 25_848, 412_947),
                "Video_Games": (94_762, 25_612, 814_586),
            },
        ),
        Protocol("movielens", k_core=5, ascii_only=True),
    )
}
