"""The page of large runs is what their results say."""

import json

from docs import pods


def test_the_page_is_written_from_the_results():
    assert pods.PAGE.read_text() == pods.page()


def test_every_command_of_the_page_has_its_result():
    assert set(pods.COMMANDS) == set(json.loads(pods.RESULTS.read_text()))
