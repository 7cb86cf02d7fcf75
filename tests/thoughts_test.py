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
    ('x</think>2', '2'),
    ('1 <reasoning>x</reasoning>2', '1 2'),
    ('<think>x<think>y</think>2', '2'),
    ('<start_working_out>x<end_working_out>2', '2'),
    ('<seed:think>x</seed:think>2', '2'),
    ('◁think▷x◁/think▷2', '2'),
    ('[THINK]x[/THINK]2', '2'),
    ('I [think] so', 'I [think] so'),
    ('<Thought>x</Thought>2', '2'),
    (
      '<|channel|>analysis<|message|>x<|end|><|start|>assistant'
      '<|channel|>final<|message|>2',
      '2',
    ),
    ('<b>x</b>2', '<b>x</b>2'),
    ('<think>x', None),
    ('2 <think>x', None),
    ('<|channel|>analysis<|message|>x', None),
    ('', ''),
  ],
)
def test_what_is_said_without_thoughts(text, rest):
  assert thoughts.without_thoughts(text) == rest


def test_a_long_text_takes_no_long_time():
  assert thoughts.thought_at_start('<' + 'think' * 200_000 + '>') == ''
