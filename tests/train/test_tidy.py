"""Questions of tokenised sets, written as people write."""

import re

import pytest

from mindmerger_train.data.tidy import as_written, capitalised


@pytest.mark.parametrize(
    ("tokenised", "written"),
    [
        ("danny had 3 books . he did n't read 2 .", "Danny had 3 books. He didn't read 2."),
        ("on monday jerry 's mom paid $ 5 , i think !", "On Monday Jerry's mom paid $5, I think!"),
        ("How many of Faye 's 30 % are left ?", "How many of Faye's 30% are left?"),
        ("a march to the end of may", "A march to the end of may"),
        ("the price is 3.5 dollars . 4 were sold ?", "The price is 3.5 dollars. 4 were sold?"),
    ],
)
def test_it_reads_as_people_write(tokenised, written):
    assert as_written(tokenised) == written


def test_what_people_wrote_stays_as_it_is():
    text = "Beth's 2 cats (Tom, Ada) didn't eat $3.50 worth of fish. Why?"
    assert as_written(text) == text


def test_the_list_holds_words_in_lower_case_and_none_that_is_often_no_name():
    words = capitalised()
    assert len(words) > 400
    assert all(re.fullmatch("[a-z]{2,}", word) for word in words)
    assert not words & {"may", "march", "bill", "mark", "will", "rose"}
