"""Records: the columns that the design lists, and what is null."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from fedray.record import ClientRecord, RoundRecord, schema, table

CLIENT = ClientRecord(
    round=1,
    client_id=3,
    device_class="phone",
    assignment="{}",
    memory_bytes=100,
    predicted_peak_bytes=90,
    measured_peak_bytes=None,
    predicted_up_bytes=5,
    predicted_down_bytes=6,
    up_bytes=5,
    down_bytes=6,
    provision_bytes=7,
    num_rows=16,
    num_steps=2,
    virtual_seconds=1.5,
    wall_seconds=None,
    joules=2.5,
    outcome="late",
    loss=None,
    attempts=1,
    message="",
)


def test_clients_parquet_has_every_column_of_the_design():
    designed = [
        "round",
        "client_id",
        "device_class",
        "assignment",
        "memory_bytes",
        "predicted_peak_bytes",
        "measured_peak_bytes",
        "predicted_up_bytes",
        "predicted_down_bytes",
        "up_bytes",
        "down_bytes",
        "provision_bytes",
        "virtual_seconds",
        "wall_seconds",
        "joules",
        "outcome",
        "loss",
    ]
    assert set(designed) <= set(schema(ClientRecord).names)


def test_rounds_parquet_has_every_column_of_the_design():
    designed = [
        "round",
        "accuracy",
        "loss",
        "virtual_seconds",
        "wall_seconds",
        "up_bytes",
        "down_bytes",
        "joules",
        "num_ok",
        "num_late",
        "num_dropped",
        "num_oom",
        "num_failed",
    ]
    assert set(designed) <= set(schema(RoundRecord).names)


def test_numbers_have_number_columns_and_only_what_may_be_unknown_is_nullable():
    columns = schema(ClientRecord)
    assert columns.field("memory_bytes").type == pa.int64()
    assert columns.field("virtual_seconds").type == pa.float64()
    assert columns.field("outcome").type == pa.string()
    unknown = [
        "measured_peak_bytes",
        "wall_seconds",
        "loss",
        "cut",
        "lost_share",
        "charge_joules",
        "cut_epsilon",
        "leakage",
    ]
    assert [f.name for f in columns if f.nullable] == unknown


def test_a_record_without_a_cut_has_a_null_there_and_nothing_crossed():
    assert CLIENT.cut is None
    assert (CLIENT.boundary_up_bytes, CLIENT.boundary_down_bytes, CLIENT.num_messages) == (0, 0, 0)
    [row] = table([replace(CLIENT, cut=0)], ClientRecord).to_pylist()
    assert row["cut"] == 0


def test_a_row_comes_back_from_parquet_as_it_was(tmp_path):
    pq.write_table(table([CLIENT], ClientRecord), tmp_path / "clients.parquet")
    [row] = pq.read_table(tmp_path / "clients.parquet").to_pylist()
    assert ClientRecord(**row) == CLIENT


def test_no_rows_still_have_columns():
    empty = table([], RoundRecord)
    assert (empty.num_rows, empty.schema) == (0, schema(RoundRecord))
