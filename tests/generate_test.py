"""Prompts and rows as they are asked outside of a run; nothing is trained."""

import contextlib
import types

import numpy as np
import pytest

from gft_jax import generate
from gft_jax.batch import Responses
from gft_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  GroupConfig,
  MeshConfig,
)
from gft_jax.data import arithmetic
from gft_jax.data.dataset import Examples

# One token a character, and a space is none of them.
IDS = {c: i for i, c in enumerate(arithmetic.ALPHABET)}


class Engine:
  """Answers to row i begin with its index; remembers what it is asked."""

  def __init__(self):
    self.asked = []

  def key(self, stream, step):
    return stream, step

  def sample(self, params, prompts, key, settings, group_size, max_tokens):
    self.asked.append((params, prompts, key, settings, group_size, max_tokens))
    shape = (len(prompts.index), group_size, max_tokens)
    return Responses(
      np.broadcast_to(prompts.index[:, None, None], shape),
      np.full(shape[:2], max_tokens, np.int32),
      np.zeros(shape, np.float32),
    )

  def decode(self, responses, settings, prompts):
    texts = [[str(row[0]) for row in group] for group in responses.tokens]
    return texts, np.ones(responses.length.shape, bool)


def policy(positions=2048):
  architecture = types.SimpleNamespace(max_positions=positions)
  return types.SimpleNamespace(
    model=types.SimpleNamespace(architecture=architecture),
    tokenizer=arithmetic.tokenizer(),
  )


@pytest.mark.parametrize(
  'longest, width', [(1, 32), (32, 32), (33, 64), (64, 64), (65, 96)]
)
def test_prompts_are_padded_to_a_multiple_of_32(longest, width):
  assert generate.width_of_prompts(policy(), longest, 1) == width


def test_a_prompt_and_its_answer_fit_the_positions_of_the_model():
  assert generate.width_of_prompts(policy(100), 60, 40) == 64
  with pytest.raises(ConfigError) as error:
    generate.width_of_prompts(policy(100), 61, 40)
  assert str(error.value) == (
    'a prompt of 61 tokens and --max-tokens 40 exceed the 100 positions of the'
    ' model'
  )


def test_prompts_by_hand():
  found = generate.prompts_to_ask(Config(), policy(), ['1+2:', '7:'], 8)
  first = [IDS[c] for c in '1+2:'] + [0] * 28
  second = [IDS[c] for c in '7:'] + [0] * 30
  assert found.tokens.tolist() == [first, second]
  assert found.length.tolist() == [4, 2] and found.index.tolist() == [0, 1]
  for array in (found.tokens, found.length, found.index):
    assert array.dtype == np.int32


def test_a_prompt_is_asked_in_the_template_with_the_instruction():
  asked = policy()
  asked.tokenizer.chat_template = (
    "{% for m in messages %}#{{ m['content'] | replace('\n', '+') }}{% endfor %}"
    '{% if add_generation_prompt %}n{% endif %}'
  )
  config = Config(data=DataConfig(instruction='7'))
  found = generate.prompts_to_ask(config, asked, ['1'], 8)
  ids = found.tokens[0, : found.length[0]]
  assert asked.tokenizer.decode(ids) == '#1+7n'


def test_a_prompt_is_asked_under_the_system_turn():
  asked = policy()
  asked.tokenizer.chat_template = (
    "{% for m in messages %}#{{ m['content'] }}{% endfor %}"
    '{% if add_generation_prompt %}n{% endif %}'
  )
  config = Config(data=DataConfig(system='9'))
  found = generate.prompts_to_ask(config, asked, ['1'], 8)
  assert asked.tokenizer.decode(found.tokens[0, : found.length[0]]) == '#9#1n'
  asked.tokenizer.chat_template = None
  with pytest.raises(
    ConfigError, match=r"data\.system='9' is for a chat templ"
  ):
    generate.prompts_to_ask(config, asked, ['1'], 8)


@pytest.mark.parametrize(
  'texts, message',
  [
    (['1:', 'x:'], '--prompt number 2 has text that the tokenizer does not'),
    (['1:', '2:', ''], '--prompt number 3 has no token'),
    (
      ['1:', '1' * 41],
      'a prompt of 41 tokens and --max-tokens 8 exceed the 48',
    ),
  ],
)
def test_a_prompt_that_cannot_be_asked_is_one_line(texts, message):
  with pytest.raises(ConfigError) as error:
    generate.prompts_to_ask(Config(), policy(48), texts, 8)
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('mesh, rows', [({}, 3), ({'data': 4}, 4)])
def test_prompts_fill_the_devices_and_each_is_answered(monkeypatch, mesh, rows):
  engine, opened = Engine(), []

  @contextlib.contextmanager
  def open_engine(*arguments):
    opened.append(arguments)
    yield engine

  monkeypatch.setattr(generate, 'open_engine', open_engine)
  config, asked = Config(mesh=MeshConfig(**mesh)), policy()
  texts = ['1:', '2:', '3:']
  answers, finished, responses = generate.answer_prompts(
    config, asked, 'params', texts, samples=2, max_tokens=5
  )
  assert opened == [(config, asked)]
  ((params, prompts, key, settings, size, most),) = engine.asked
  assert (params, key, size, most) == ('params', ('evaluate', 0), 2, 5)
  assert settings is config.sampler
  # What fills the mesh is the last prompt again.
  assert prompts.index.tolist() == [0, 1, 2, 2][:rows]
  assert answers[:3] == [['0', '0'], ['1', '1'], ['2', '2']]
  assert finished.shape == (rows, 2) and responses.tokens.shape == (rows, 2, 5)


def examples(count, width=8):
  tokens = np.arange(count * width, dtype=np.int32).reshape(count, width)
  return Examples(
    tokens=tokens,
    length=np.full(count, 3, np.int32),
    index=np.arange(50, 50 + count, dtype=np.int32),
    given_tokens=np.zeros((count, 0, 4), np.int32),
    given_length=np.zeros((count, 0), np.int32),
    given_origin=np.zeros(0, np.int32),
    prompts=['p'] * count,
    answers=['a'] * count,
    given_texts=[[]] * count,
  )


@pytest.mark.parametrize(
  'count, asked',
  [(1, [50, 50, 50, 50]), (3, [50, 51, 52, 52]), (4, [50, 51, 52, 53])],
)
def test_every_batch_of_rows_has_one_shape_and_its_own_answers(count, asked):
  engine = Engine()
  config = Config(
    data=DataConfig(batch_size=4, max_response=6),
    group=GroupConfig(experts=0, teachers=0, samples=2),
  )
  answers, finished = generate.answer_examples(
    engine, 'params', examples(count), config, 5
  )
  ((params, prompts, key, settings, size, most),) = engine.asked
  assert (params, key, size, most) == ('params', ('evaluate', 0), 2, 6)
  assert settings is config.sampler
  assert prompts.tokens.shape == (4, 5)
  np.testing.assert_array_equal(
    prompts.tokens[:count], examples(count).tokens[:, :5]
  )
  # Random bits depend on the row of the dataset, so its index goes along.
  assert prompts.index.tolist() == asked
  assert answers == [[str(50 + i)] * 2 for i in range(count)]
  assert finished.shape == (count, 2)
