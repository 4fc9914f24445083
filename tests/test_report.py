import base64
import json
import os
import re
import shutil

import pyarrow.parquet as pq
import pytest

from fedray.errors import ConfigError
from fedray.record import EvaluationRecord, RoundRecord, table
from fedray.report import write_report
from fedray.report.reading import read_run
from fedray.report.tallies import curves, device_classes, given, spent
from left_run import MIB, client_record, evaluations_after, leave, round_record, tiny_run, twelve_clients
from report_page import Page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    rounds, clients, evaluations = [], [], []
    for number in range(1, 11):
        own = twelve_clients(number)
        clients += own
        rounds.append(round_record(number, own, 0.76 * (1 - 0.72**number)))
        evaluations += evaluations_after(number)
    return leave(tmp_path_factory.mktemp("runs") / "edge-largest", rounds, clients, evaluations)


@pytest.fixture(scope="module")
def shown(finished):
    return write_report(finished).read_text(encoding="utf-8")


def test_a_page_names_nothing_outside_itself_and_runs_no_script(shown):
    page = Page(shown)
    assert page.open == []
    outside = [a for a in page.addresses if not a.startswith(("#", "data:image/svg+xml;base64,"))]
    assert outside == []
    assert "<script" not in shown
    assert "url(" not in shown
    assert "http" not in re.sub(r'"data:[^"]*"', "", shown)


def test_every_entry_of_the_contents_leads_to_a_section(shown):
    page = Page(shown)
    entries = [address[1:] for address in page.addresses if address.startswith("#")]
    assert entries == page.anchors
    assert len(entries) == 7


def test_five_figures_carry_axes_with_units(shown):
    pictures = [
        base64.b64decode(found) for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", shown)
    ]
    assert len(pictures) == 5
    # matplotlib leaves each text of a figure in a comment beside its outline.
    texts = [re.findall(r"<!-- (.+?) -->", picture.decode()) for picture in pictures]
    progress, mix, peaks, classes, outcomes = texts
    for label in (
        "Virtual time, summed (min)",
        "Bytes on the wire, summed (GiB)",
        "Energy, declared, summed (kJ)",
    ):
        assert label in progress
    assert "Accuracy (share of rows)" in progress
    assert "Share of the class's client-rounds (%)" in mix
    assert {
        "Predicted peak (live tensor MiB)",
        "Bytes (MiB)",
        "Measured minus predicted (% of predicted)",
    } <= {*peaks}
    assert "Rounds a client was asked in (number)" in classes
    assert {"Round (number)", "Clients asked (number)", "late", "dropped", "oom", "failed"} <= {*outcomes}


def test_the_headline_says_virtual_and_wall_time_apart(shown):
    words = re.sub(r"\s+", " ", Page(shown).text)
    # 0.76 (1 - 0.72^10) = 0.7316
    assert "Final accuracy0.732test rows, after round 10" in words
    assert "Client-rounds ok115 of 1202 late, 1 dropped, 1 oom, 1 failed" in words
    # Each round waits for its slowest; all ten took 6.5 wall seconds.
    assert "Wall time1 min 5 swhat this machine took" in words
    assert "Virtual time" in words


def test_costs_are_summed_over_rounds_and_count_provision_once(tmp_path):
    # The engine's own down_bytes of a round hold provision too; 10 + 20 + 1000, then 11 + 22.
    folder = tiny_run(tmp_path / "run")
    rounds = pq.read_table(folder / "rounds.parquet").to_pylist()
    rounds[0]["down_bytes"] = 1020
    leave(folder, [RoundRecord(**r) for r in rounds], read_run(folder).clients, [])
    cost = spent(read_run(folder))
    assert cost.wire_bytes.tolist() == [1030, 1063]
    assert cost.virtual_seconds.tolist() == [10, 30]
    assert cost.joules.tolist() == [3, 7]


def test_accuracy_of_a_split_weighs_clients_by_their_rows(tmp_path):
    def evaluation(client_id, num_rows, accuracy, split="test"):
        return EvaluationRecord(
            round=2,
            split=split,
            client_id=client_id,
            device_class="a",
            num_rows=num_rows,
            accuracy=accuracy,
            loss=1.0,
        )

    folder = tiny_run(tmp_path / "run")
    run = read_run(folder)
    own = [evaluation(0, 30, 0.5), evaluation(1, 10, 0.9), evaluation(0, 10, 0.1, "unseen")]
    leave(folder, run.rounds, run.clients, own)
    test, unseen = curves(read_run(folder))
    # (30 * 0.5 + 10 * 0.9) / 40
    assert (test.split, test.rounds, test.accuracy) == ("test", (1,), (pytest.approx(0.6),))
    assert (unseen.split, unseen.accuracy) == ("unseen", (pytest.approx(0.1),))


def test_who_got_what_counts_every_client_round_once(finished, shown):
    run = read_run(finished)
    found = given(run)
    assert [one.code for one in found] == ["A", "B", "C", "D", "E"]
    assert sum(len(one.records) for one in found) == len(run.clients) == 120
    # The low phones all got rank 4 on the top 2 of 6, and nobody else did.
    phones = sum(record.device_class == "phone-low" for record in run.clients)
    assert Page(shown).row("A", "4")[:7] == ["A", "4", "2 of 6", "no", "fp32", "8", f"{phones} (100 %)"]


def test_the_memory_table_gives_measured_over_predicted_and_the_tightest_margin(tmp_path):
    # 95 MiB measured of 100 MiB predicted, 125 MiB declared: 0.950, 20 % left by prediction, 24 % measured.
    peaks = {"predicted_peak_bytes": 100 * MIB, "memory_bytes": 125 * MIB}
    audited = client_record(1, 0, measured_peak_bytes=95 * MIB, **peaks)
    other = client_record(1, 4, measured_peak_bytes=None, **peaks | {"memory_bytes": 160 * MIB})
    folder = leave(tmp_path / "run", [round_record(1, [audited, other], 0.5)], [audited, other], [])
    row = Page(write_report(folder).read_text()).row("A", "rank 4 on 2 of 6 blocks, batch 8")
    assert row[2:] == ["2", "1", "100.0 MiB", "95.0 MiB", "0.950", "125.0 MiB", "20.0 %", "24.0 %"]


def test_a_peak_that_was_not_measured_is_never_filled_from_the_prediction(tmp_path):
    page = Page(write_report(tiny_run(tmp_path / "run")).read_text())
    assert page.row("A", "rank 16 on all 6 blocks, batch 8")[5:7] == ["not audited", "\u2013"]
    assert "No client-round was audited, so no peak here was measured." in page.text


def test_device_classes_count_rounds_and_ok_shares(finished):
    run = read_run(finished)
    classes = device_classes(run)
    assert [c.name for c in classes] == ["phone-low", "raspberry-pi-5", "jetson-orin", "laptop"]
    assert sum(sum(c.rounds_by_client.values()) for c in classes) == 120
    ok = [sum(r.outcome == "ok" for r in run.clients if r.device_class == c.name) for c in classes]
    assert [c.ok_share for c in classes] == [n / len(c.records) for n, c in zip(ok, classes, strict=True)]
    assert all(len(c.tests) == 6 and {r.round for r in c.tests} == {10} for c in classes)


def test_a_failed_client_stands_with_its_message(shown):
    row = Page(shown).row("6", "0")
    assert row[2:] == ["phone-low", "failed", "1", "the loss of client 0 is nan after 6 steps"]


def test_what_comes_from_a_run_cannot_become_html(tmp_path):
    message = '<script>alert("x")</script> & <b>bold</b>'
    folder = tiny_run(
        tmp_path / "a <i>run", outcome="failed", message=message, device_class="<img src=x> $_$"
    )
    (folder / "config.yaml").write_text("model:\n  name: </pre><script>alert(1)</script>\n")
    (folder / "environment.json").write_text(json.dumps({"<u>host</u>": ["</table>", 1]}))
    text = write_report(folder).read_text()
    page = Page(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "<img src=x" not in text
    assert message in page.text
    assert "</pre><script>alert(1)</script>" in page.text
    assert page.row("<u>host</u>") == ["<u>host</u>", '["</table>", 1]']


def test_one_round_without_evaluation_or_audit_gives_a_report(tmp_path):
    clients = [client_record(1, 0, measured_peak_bytes=None)]
    folder = leave(tmp_path / "run", [round_record(1, clients, None)], clients, [])
    words = Page(write_report(folder).read_text()).text
    assert "This run evaluated nothing" in words
    assert "data.per_client: true" in words


def test_a_round_in_which_nobody_was_asked_gives_a_report(tmp_path):
    folder = leave(tmp_path / "run", [round_record(1, [], 0.1)], [], [])
    assert "No client was given an assignment." in Page(write_report(folder).read_text()).text


def test_many_device_classes_leave_room_for_shares_alone(tmp_path):
    clients = [client_record(1, 3, device_class=f"class-{i % 6}") for i in range(12)]
    folder = leave(tmp_path / "run", [round_record(1, clients, 0.5)], clients, [])
    page = Page(write_report(folder).read_text())
    assert page.row("A") == ["A", "rank 16 on all 6 blocks, batch 8", *["100 %"] * 6]


def test_a_client_that_ran_twice_is_listed(tmp_path):
    page = Page(write_report(tiny_run(tmp_path / "run", attempts=2)).read_text())
    assert page.row("1", "3") == ["1", "3", "laptop", "ok", "2", "ran 2 times"]


def test_rounds_beyond_sixty_are_summed_in_groups(tmp_path):
    clients = [client_record(number, 3) for number in range(1, 152)]
    rounds = [round_record(r.round, [r], 0.1) for r in clients]
    text = write_report(leave(tmp_path / "run", rounds, clients, [])).read_text()
    last = base64.b64decode(re.findall(r"base64,([^\"]+)", text)[-1]).decode()
    assert "<!-- Round (number; a bar is 3 rounds) -->" in last


def test_the_same_run_gives_the_same_page(finished, shown):
    assert write_report(finished).read_text(encoding="utf-8") == shown


@pytest.mark.parametrize(
    "name", ["rounds.parquet", "clients.parquet", "evaluations.parquet", "config.yaml", "environment.json"]
)
def test_a_missing_file_is_named(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} is missing, and a report needs it"):
        write_report(tmp_path / "run")
    assert not list((tmp_path / "run").glob("report.html*"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("rounds.parquet", "no whole Parquet file"),
        ("clients.parquet", "no whole Parquet file"),
        ("environment.json", "no whole JSON file"),
    ],
)
def test_a_file_cut_in_half_is_named(finished, tmp_path, name, what):
    shutil.copytree(finished, tmp_path / "run")
    whole = (tmp_path / "run" / name).read_bytes()
    (tmp_path / "run" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=what) as caught:
        write_report(tmp_path / "run")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_yaml_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("model: [1, 2")
    with pytest.raises(ConfigError, match=r"config\.yaml is no whole YAML file"):
        write_report(tmp_path / "run")


def test_a_table_of_other_columns_is_refused_by_their_names(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "rounds.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["drift", "joules"]), path)
    with pytest.raises(ConfigError, match="lacks the column joules, drift"):
        write_report(tmp_path / "run")


def test_a_run_without_a_finished_round_is_told_to_resume(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    pq.write_table(table([], RoundRecord), tmp_path / "run" / "rounds.parquet")
    with pytest.raises(ConfigError, match=r"holds no round: .* resume it"):
        write_report(tmp_path / "run")


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reads the folder of a run"):
        write_report(tmp_path / "nowhere")


def test_a_page_that_cannot_be_written_leaves_the_one_of_before(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("the one of before")
    # A folder stands where the page is first written, so that opening it fails as a full disk would.
    (tmp_path / "run" / f"report.html.{os.getpid()}.part").mkdir()
    with pytest.raises(ConfigError, match=r"report\.html cannot be written"):
        write_report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == "the one of before"
