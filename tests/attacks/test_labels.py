"""Label inference at a split: from gradients by hand, and from what goes up in a run with tails."""

import pytest
import torch

from fedray.attacks.labels import by_direction, by_norm, of_rows
from fedray.errors import ConfigError
from fedray.model.codecs import decode
from fedray.training.boundary import padded_tokens
from fedray.training.tap import Tap
from tiny_run import begun, merged, played, save_fleet


def test_the_rare_class_whose_rows_are_pushed_hardest_is_told_by_length():
    gradients = torch.tensor([[0.1, 0.0], [0.0, 0.2], [3.0, 4.0], [0.3, 0.0]])
    assert by_norm(gradients, torch.tensor([0, 0, 1, 0]), positive=1).auc == 1.0
    assert by_norm(gradients, torch.tensor([0, 0, 1, 0]), positive=0).auc == 0.0


def test_rows_pushed_the_same_way_have_the_same_label_whatever_their_length():
    known = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.0, -2.0]])
    private = torch.tensor([[0.1, 0.01], [0.2, -9.0]])
    assert by_direction(known, torch.tensor([7, 7, 2]), private).tolist() == [7, 2]
    with pytest.raises(ConfigError, match="rows whose labels are known: found none"):
        by_direction(known[:0], torch.tensor([]), private)


def test_padding_says_nothing_of_a_row():
    gradient = torch.ones(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert of_rows(gradient, mask).sum(1).tolist() == [8.0, 4.0]


class Gradients(Tap):
    """Row by row what goes up at tails."""

    def __init__(self):
        self.rows, self.found, self.sent_up = [], [], {}

    def crossed(self, job, crossing):
        message = crossing.message
        if crossing.passing == "states_up":
            self.sent_up[job.client_id] = message.lengths, message.rows
        elif crossing.passing == "gradient_up":
            lengths, rows = self.sent_up[job.client_id]
            shape = len(rows), int(lengths.max())
            padded = padded_tokens(decode(message.states), lengths, shape)
            self.rows += rows
            self.found.append(padded.sum(1))


def test_what_goes_up_under_a_tail_gives_labels_away_that_never_left(tiny, tmp_path):
    config = merged(
        tiny,
        {
            "fleet": save_fleet(tmp_path / "rich.csv", [4096] * 8),
            "menu": {"ranks": [2], "depths": ["all"], "cuts": [2], "tails": [1], "whole": False},
            "rounds": {"num_rounds": 1, "clients_per_round": 8},
        },
    )
    tap = Gradients()
    played(config, [tap])
    scene, _ = begun(config)
    labels = torch.from_numpy(scene.encoded.numbers["label"])[torch.tensor(tap.rows)]
    gradients = torch.cat(tap.found)
    known = torch.arange(len(labels)) % 4 == 0
    said = by_direction(gradients[known], labels[known], gradients[~known])
    assert len(labels) > 60
    # Four classes, the largest of at most a third of the rows.
    assert float((said == labels[~known]).float().mean()) > 0.8
