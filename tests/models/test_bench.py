from crate_graph.models import bench


def test_rows_are_in_the_order_of_the_memory_kept():
    rows = bench.run(names=("crate_tiny_patch32_224",), batch=1, repeats=1)
    assert [row["mode"] for row in rows] == ["none", "block", "layer", "every_k, k=4"]
    kept = [row["kept_mib"] for row in rows]
    assert kept == sorted(kept, reverse=True) and kept[0] > 4 * kept[-1]
