"""LSTM over rows: its arithmetic by hand, its first weights, and that it learns."""

import torch

import sigak
from sigak import models


def test_one_step_by_hand():
    torch.manual_seed(0)
    network = models.create("lstm-rows", size=(1, 5), hidden=3, classes=2)
    row = torch.rand(4, 1, 1, 5)
    lstm, x = network.lstm, row.flatten(1)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    i, _, g, o = (x @ lstm.weight_ih_l0.T + bias).chunk(4, 1)  # nothing to forget yet
    state = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
    expected = state @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(row), expected)


def test_rows_are_read_from_top_to_bottom_and_the_last_decides():
    network = models.create("lstm-rows", size=(6, 4), hidden=8).eval()
    picture = torch.rand(1, 1, 6, 4)
    states, _ = network.lstm(picture[0, 0])  # (H, W) is a sequence of rows
    torch.testing.assert_close(network(picture), network.classifier(states[-1:]))
    assert not torch.allclose(network(picture), network(picture.flip(2)))


def test_colours_stand_in_one_row_and_the_height_is_free():
    network = models.create("lstm-rows", size=(28, 28), color="rgb")
    assert network.lstm.input_size == 84
    assert network(torch.rand(2, 3, 40, 28)).shape == (2, 10)


def test_first_weights_are_those_of_keras():
    torch.manual_seed(0)
    lstm = models.create("lstm-rows").lstm
    torch.testing.assert_close(lstm.weight_hh_l0.T @ lstm.weight_hh_l0, torch.eye(128))
    bound = (6 / (28 + 512)) ** 0.5
    assert 0.97 * bound < lstm.weight_ih_l0.abs().max() <= bound
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist() == [0.0] * 128 + [1.0] * 128 + [0.0] * 256


def test_it_learns_digits(tmp_path):
    torch.set_num_threads(1)
    run = sigak.train("lstm-rows", "digits", epochs=10, out=str(tmp_path / "run"), quiet=True)
    assert run.evaluation["accuracy"] > 0.95
