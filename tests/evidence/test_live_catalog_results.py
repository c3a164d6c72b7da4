"""Tables of changed catalogs."""

from live_catalog_results import cold_start_blocks, month_blocks


def test_cold_items_and_months_have_tables_with_intervals():
    each = {
        f"{name}{kind}": value
        for name in ("recall@10", "ndcg@10")
        for kind, value in (("", 0.25), (" interval", [0.2, 0.3]), (" less", 0.01), (" less interval", [0.0, 0.02]))
    }
    ways = {way: {"cold": each, "warm": each} for way in ("nothing", "id only", "restricted", "quota", "margin")}
    figures = {"num_cold_items": 5, "newest_by": "time", "loss": 0.03, "places": 2, "margin": (1, 1.25), "test": ways}
    figures["test"]["num_users"] = {"cold": 7, "warm": 1_000}
    way = {name: {"mean": 0.5, "interval": [0.4, 0.6]} for name in ("recall@10", "ndcg@10")}
    way |= {f"{name} new": value for name, value in way.items()}
    month = {"month": "2011-04", "ways": {"retrained": way}}
    together = {"fine-tuned": {"frozen": way, "fine-tuned": way}, "retrained": {"retrained": way}}
    months = {"months": [month], "num_items": 9, "first_months": 4, "together": together}
    months["seconds"] = {"anew 2011-04": 60.0, "tuned 2011-04": 30.0}

    cold, by_month = cold_start_blocks({"Shop": figures}), month_blocks(months)

    assert cold[-1].splitlines()[6] == (
        "| places: 1, margin 1.25 | 0.2500 [0.2000, 0.3000] | 0.2500 [0.2000, 0.3000] | 0.2500 [0.2000, 0.3000] | "
        "0.2500 [0.2000, 0.3000] | 4.0% [0.0%, 8.0%] |"
    )
    assert by_month[2].splitlines()[3].endswith("| 0.5000 [0.4000, 0.6000] | 1.5 |")
    assert cold_start_blocks(None) == month_blocks({}) == []
