"""Monte Carlo labels, by hand."""

import json

from r1jax.search.labels import Labelled, label, prefixes

END, CUT = 9, frozenset({7})
RESPONSES = {
    (0, 0): (1, 7, 2, 7, 3, END),
    (0, 1): (1, 7, 4, END),
    (1, 0): (1, 7, 7),  # cut off; its last token holds a separator
}


def test_every_beginning_is_continued_once():
    # (1, 7) of the first problem is shared by two samples; the second problem has its own.
    # It keeps where it came first: the sample, and its last token there.
    want = {(0, (1, 7)): (0, 1), (0, (1, 7, 2, 7)): (0, 3), (1, (1, 7)): (0, 1)}
    assert list(prefixes(RESPONSES, CUT).items()) == list(want.items())
    other = prefixes({(0, 1): RESPONSES[0, 1], (0, 2): RESPONSES[0, 0]}, CUT)
    assert other == {(0, (1, 7)): (1, 1), (0, (1, 7, 2, 7)): (2, 3)}


def test_steps_get_the_shares_of_their_prefixes_and_the_last_its_own_outcome():
    shares = {(0, (1, 7)): 0.25, (0, (1, 7, 2, 7)): 0.0, (1, (1, 7)): 1.0}
    right = {(0, 0): True, (0, 1): False, (1, 0): False}
    made = list(label(RESPONSES, right, shares, CUT))
    assert [(x.problem, x.sample) for x in made] == list(RESPONSES)
    assert [x.ends for x in made] == [(1, 3, 5), (1, 3), (1, 2)]
    assert [x.shares for x in made] == [(0.25, 0.0, 1.0), (0.25, 0.0), (1.0, 0.0)]
    assert made[0].labels("soft") == [0.25, 0.0, 1.0]
    assert made[0].labels("hard") == [1.0, 0.0, 1.0]  # one right continuation is enough


def test_labels_come_back_from_a_file_as_they_were():
    one = Labelled(3, 1, (1, 7, 2), (1, 2), (0.3, 1.0))
    assert Labelled.of(json.loads(json.dumps(one.row()))) == one
