import torch
import torch.nn.functional as F

from crate_graph.ops import bench
from crate_graph.ops.memory import saved_bytes


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    x, weight = torch.randn(8, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)

    def forward():
        y = F.linear(x, weight)  # keeps x and weight
        return (y * y.view(8, 16)).sum()  # keeps y, twice

    assert saved_bytes(forward, [weight]) == 2 * 8 * 16 * 4
    assert saved_bytes(forward, []) == (2 * 8 * 16 + 16 * 16) * 4


def test_rows_show_less_memory_and_equal_results(monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "TOKENS", 40)
    monkeypatch.setattr(bench, "DIM", 48)
    monkeypatch.setattr(bench, "HEADS", 3)
    threads = torch.get_num_threads()
    rows = {row["operator"]: row for row in bench.run(threads=1, repeats=1)}
    assert torch.get_num_threads() == threads
    assert set(rows) == {"MSSA", "ISTA", "ISTA, one image", "CRATE-T layer", "overcomplete ISTA", "TSSA"}
    for row in rows.values():
        assert row["max_error"] < 1e-5
        assert row["reference_ms"] > 0
        assert row["fast_ms"] > 0
    for operator in ("CRATE-T layer", "TSSA"):
        assert rows[operator]["fast_mib"] < rows[operator]["reference_mib"]
