"""Trackers, through accelerate's own door: one that keeps what it is told."""

from contextlib import closing

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from fedray.config import load_config
from fedray.errors import ConfigError
from fedray.tracking import Tracker, refuse_absent_trackers
from left_run import round_record, twelve_clients


class Notebook(GeneralTracker):
    """Keeps everything."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.logged, self.finished = {}, [], False

    @property
    def tracker(self):
        return self.logged

    @on_main_process
    def store_init_configuration(self, values):
        self.config = values

    @on_main_process
    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    @on_main_process
    def finish(self):
        self.finished = True


def test_a_tracker_gets_the_flat_configuration_and_each_round_without_what_was_not_measured():
    notebook = Notebook()
    config = load_config({"report_to": ["all"], "training": {"learning_rate": 0.5}})
    with closing(Tracker(Accelerator(log_with=[notebook]), config)) as tracker:
        for number, accuracy in ((1, None), (2, 0.75)):
            tracker.log(round_record(number, twelve_clients(number), accuracy))
    assert notebook.finished
    assert notebook.config["training.learning_rate"] == 0.5
    assert all(isinstance(value, int | float | str | bool) for value in notebook.config.values())
    assert [step for step, _ in notebook.logged] == [1, 2]
    first, second = (values for _, values in notebook.logged)
    assert "accuracy" not in first
    assert second["accuracy"] == 0.75
    assert second["num_ok"] == 12


def test_without_trackers_nothing_is_started():
    notebook = Notebook()
    with closing(Tracker(Accelerator(log_with=[notebook]), load_config({}))) as tracker:
        tracker.log(round_record(1, [], None))
    assert (notebook.config, notebook.logged) == ({}, [])


def test_a_tracker_is_known_and_installed_or_refused_with_those_that_are():
    refuse_absent_trackers(())
    refuse_absent_trackers(("all",))
    with pytest.raises(ConfigError, match=r"no tracker 'wandbb'; accelerate has aim, .*wandb"):
        refuse_absent_trackers(("wandbb",))
    with pytest.raises(ConfigError, match=r"asks for dvclive, which is not installed.*pip install dvclive"):
        refuse_absent_trackers(("dvclive",))
