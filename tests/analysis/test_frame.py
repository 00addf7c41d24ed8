from grids import grid, peaked, record

from blockwise.analysis.frame import records_frame


def test_one_line_a_record():
    records = grid(peaked, backbones=("net00", "net01"), seeds=(0, 1))
    frame = records_frame(records)
    assert len(frame) == len(records) == 2 * 14 * 2
    best = frame[frame["block"].notna()].groupby("backbone")["val_top1"].idxmax()
    assert frame.loc[best, "block"].tolist() == [6, 7]
    assert frame["sweep"].nunique() == 2
    line = frame[frame["scope"] == "7"].iloc[0]
    assert (line["quarter"], line["depth"], line["lr"], line["num_blocks"]) == (3, 7.5 / 12, 1e-3, 12)


def test_a_cell_without_metrics_has_none():
    diverged = record("3", 0.5, status="diverged")
    frame = records_frame([diverged, record("head", 0.5)])
    assert frame["test_top1"].isna().tolist() == [True, False]
