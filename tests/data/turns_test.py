"""Turns in the spellings of others, and turns that cannot be used."""

import pytest

from gft_jax.data import cells, turns

USER = {'role': 'user', 'content': 'a'}
ASSISTANT = {'role': 'assistant', 'content': 'b'}


@pytest.mark.parametrize(
  'turn, expected',
  [
    ({'from': 'human', 'value': 'a'}, USER),
    ({'from': 'gpt', 'value': 'b'}, ASSISTANT),
    ({'role': 'MODEL', 'content': 'b'}, ASSISTANT),
    ({'role': b'User ', 'content': b'a'}, USER),
    (
      {'role': 'developer', 'content': 'c'},
      {'role': 'system', 'content': 'c'},
    ),
    ({'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}, USER),
    ({'role': 'user', 'content': ['a']}, USER),
    # Arrow gives every turn and part the keys of all others.
    (
      {
        **{'role': 'user', 'name': None, 'tool_calls': []},
        'content': [{'type': 'text', 'text': b'a', 'image_url': None}],
      },
      USER,
    ),
    (
      {'role': 'assistant', 'content': 'b', 'thinking': b'hm', 'n': 1},
      {**ASSISTANT, 'thinking': 'hm', 'n': 1},
    ),
    (
      {'role': 'assistant', 'content': None, 'tool_calls': [{'f': b'x'}]},
      {'role': 'assistant', 'content': '', 'tool_calls': [{'f': 'x'}]},
    ),
    ({'role': 'system', 'content': ''}, {'role': 'system', 'content': ''}),
  ],
)
def test_a_turn_in_our_names(turn, expected):
  assert turns.conversation('messages', [turn]) == [expected]


@pytest.mark.parametrize(
  'turn, reason',
  [
    (
      {'role': 'user', 'content': [{'type': 'image_url', 'image_url': 'x'}]},
      'messages: turn 1: content has a part of type image_url, not text',
    ),
    (
      {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text'}]},
      'messages: turn 1: content has a part of type image, not text',
    ),
    ({'from': 'function_call', 'value': '{}'}, 'has the role'),
    (
      {**ASSISTANT, 'weight': 0},
      'messages: turn 1 has weight 0; every answer trains',
    ),
    ({'from': None, 'value': 'a'}, 'messages: turn 1 has no role'),
    ({'role': 'user', 'content': []}, 'messages: turn 1: content is empty'),
    ({'role': 'user'}, 'messages: turn 1: content is missing'),
  ],
)
def test_a_turn_that_cannot_be_used_is_named(turn, reason):
  with pytest.raises(cells.BadRow, match=reason):
    turns.conversation('messages', [turn])


@pytest.mark.parametrize(
  'value, expected',
  [
    ('plain', None),
    ('[1] + [2]?', None),
    ('[1, 2]', None),
    (USER, [USER]),
    ('[{"from": "human", "value": "a"}]', [{'from': 'human', 'value': 'a'}]),
    (b' [{"role": "user"}]', [{'role': 'user'}]),
    (["{'role'"], ["{'role'"]),
  ],
)
def test_a_cell_holds_turns_or_a_text(value, expected):
  assert turns.turns_in('prompt', value) == expected


@pytest.mark.parametrize(
  'printed',
  [
    "[{'role': 'user', 'content': 'a'}]",
    "[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'x'}]",
    "[ {'from': 'human', 'value': 'a'}]",
  ],
)
def test_turns_as_python_prints_them_are_no_text(printed):
  with pytest.raises(cells.BadRow, match="in Python's spelling, not in JSON"):
    turns.turns_in('prompt', printed)
