"""Marks around thoughts, in several spellings."""

import pytest

from gft_jax import thoughts


@pytest.mark.parametrize(
  'text, mark, rest',
  [
    ('<think>x', '<think>', 'x'),
    ('<think>\nx', '<think>', '\nx'),
    (' <think>\nx', '<think>\n', 'x'),
    ('<think> x', '<think>\n', ' x'),
    ('[THINK]x', '<think>', '[THINK]x'),
    ('<think>x', '', '<think>x'),
  ],
)
def test_behind_a_prompt_a_mark_stands_once(text, mark, rest):
  assert thoughts.without_mark(text, mark) == rest


@pytest.mark.parametrize(
  'text, never',
  [
    ('<think>x', True),
    ('\n◁think▷x[/think]', True),
    ('◁think▷x◁/think▷', False),
    ('<reasoning>x</reasoning>', False),
    ('x <think>', False),
    ('</think>x', False),
    ('', False),
  ],
)
def test_thoughts_that_never_close(text, never):
  assert thoughts.never_closes(text) == never


@pytest.mark.parametrize(
  'text, rest',
  [
    ('<think>x</think>2', '2'),
    ('<|begin_of_thought|>x<|end_of_thought|> 2', ' 2'),
    ('<think>x</think>y</think>2', '2'),
    ('x</think>2', 'x</think>2'),
    ('<b>x</b>2', '<b>x</b>2'),
  ],
)
def test_behind_thoughts(text, rest):
  assert thoughts.behind_thoughts(text) == rest


def test_a_long_text_takes_no_long_time():
  assert thoughts.thought_at_start('<' + 'think' * 200_000 + '>') == ''
