"""Chat templates as their makers publish them, against transformers itself.

TRL's wheel carries them, and beside most a variant in which {% generation %}
marks what an assistant writes: an oracle for the masks that is not ours. They
are read from the installed package (`pip install --no-deps trl`), which is not
imported, or from the wheel that TRL_WHEEL names.
"""

import datetime
import importlib.util
import os
import pathlib
import re
import zipfile

import pytest
import tokenizers
import transformers
from chats import write
from transformers.utils import chat_template_utils

from gft_jax.config import DataConfig
from gft_jax.data import chat, encoding
from gft_jax.data.files import BadRow
from gft_jax.huggingface.chat_template import DAY

pytestmark = pytest.mark.slow

# Templates whose variant differs by its marks alone; see below for Qwen 3.
MARKED = (
  'cohere',
  'cohere2',
  'gemma',
  'gemma3',
  'glm4moe',
  'gptoss',
  'lfm2',
  'lfm2_v2',
  'llama3',
  'muse_glimmer',
  'phi3',
  'phi3_5',
  'qwen2_5',
  'qwen3',
  'qwen3_instruct_2507',
)
# The call for an answer opens thoughts, and no turn that is over has any.
PREFILLED = ('deepseek_r1_distill', 'deepseekv3')
# The call opens thoughts; the last turn has them, if only empty ones.
OPENED = ('nemotron_3_nano', 'qwen3_5_think', 'qwen3_6', 'qwen3_8')

ASKED = [{'role': 'user', 'content': 'What is 1+1?'}]
ONE = [{'role': 'assistant', 'content': '2, él dijo.'}]
MORE = [
  *ONE,
  {'role': 'user', 'content': 'And\n2+2?'},
  {'role': 'assistant', 'content': '4 it is.'},
]
REASONED = [{**ONE[0], 'reasoning_content': 'One and one.'}]
THOUGHT = [
  {
    'role': 'assistant',
    'content': '<think>\nOne and one.\n</think>\n\n2, él dijo.',
  }
]


@pytest.fixture(autouse=True)
def day(monkeypatch):
  """The day of every template here, for transformers too."""

  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(DAY.year, DAY.month, DAY.day)

  monkeypatch.setattr(chat_template_utils, 'datetime', Clock)


@pytest.fixture(scope='module')
def templates():
  """Name -> text."""
  if 'TRL_WHEEL' in os.environ:
    folder = zipfile.Path(os.environ['TRL_WHEEL'], 'trl/chat_templates/')
  else:
    spec = importlib.util.find_spec('trl')  # Imports nothing.
    if spec is None:
      pytest.skip('no trl; pip install --no-deps trl')
    folder = pathlib.Path(spec.submodule_search_locations[0], 'chat_templates')
  found = {
    path.name.removesuffix('.jinja'): path.read_text(encoding='utf-8')
    for path in folder.iterdir()
    if path.name.endswith('.jinja')
  }
  assert len(found) > 20
  return found


def tokenizer_of(template):
  """Bytes, and the special tokens that the template writes."""
  special = set(
    re.findall(r'<\|?\w+\|?>|<\|[^<>|\s]+\|>|<｜[^<>]+｜>', template)
  )
  special -= {mark for mark in special if re.match(r'</?[a-z]+>', mark)}
  special |= set(re.findall(r'<(?:start|end)_of_\w+>', template))
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['<bos>', '<|endoftext|>', *sorted(special)])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='<|endoftext|>', bos_token='<bos>'
  )
  tokenizer.chat_template = template
  return tokenizer


def ours(tokenizer, answered, **settings):
  """Ids of prompt and answer, and which train."""
  writer = chat.Writer(DataConfig(**settings), tokenizer)
  asked = writer.asked(ASKED)
  prompt = writer.prompt(asked)
  written = writer.answer(asked, answered, prompt)
  ((ids, trained),) = encoding.encode_answers([written], writer)
  (before,) = encoding.encode_texts([prompt], tokenizer)
  trained = [True] * len(ids) if trained is None else trained.tolist()
  return before, ids.tolist(), trained


@pytest.mark.parametrize('answered', [ONE, MORE])
@pytest.mark.parametrize('name', MARKED)
def test_ids_and_masks_are_those_of_transformers(templates, name, answered):
  """The answer ends with its last turn: behind that comes space, or EOS."""
  tokenizer = tokenizer_of(templates[name])
  prompt, ids, trained = ours(tokenizer, answered)
  asked = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)
  assert prompt == asked['input_ids']
  turns = [*ASKED, *answered]
  whole = tokenizer.apply_chat_template(turns)['input_ids']
  if name == 'glm4moe':  # A turn of it ends where another begins.
    assert ids.pop() == tokenizer.eos_token_id
  end = len(prompt) + len(ids)
  assert prompt + ids == whole[:end]
  rest = tokenizer.decode(whole[end:], skip_special_tokens=True)
  assert not rest.strip() and len(whole) - end <= 2

  theirs = tokenizer.apply_chat_template(
    turns,
    chat_template=templates[f'{name}_training'],
    return_assistant_tokens_mask=True,
  )
  if theirs['input_ids'][:end] != whole[:end]:  # They write thoughts anew.
    assert name == 'qwen3' and answered is MORE
    return
  marked = theirs['assistant_masks'][len(prompt) : end]
  differ = [i for i, t, m in zip(ids, trained, marked) if t != bool(m)]
  # Some mark the call for the second answer too, and where GLM's first ends.
  text = re.sub(
    r'<\|start\|>assistant|<\|user\|>', '', tokenizer.decode(differ)
  )
  assert not text.strip()
  assert trained[-1] and sum(trained) > 10


@pytest.mark.parametrize('name', PREFILLED)
def test_thoughts_that_a_template_leaves_out_train(templates, name):
  """A variant keeps them, and is the oracle."""
  tokenizer = tokenizer_of(templates[name])
  prompt, ids, trained = ours(tokenizer, THOUGHT)
  whole = tokenizer.apply_chat_template(
    [*ASKED, *THOUGHT],
    chat_template=templates['deepseek_r1_distill_training'],
  )
  assert prompt + ids == whole['input_ids'] and all(trained)


@pytest.mark.parametrize('answered', [THOUGHT, REASONED])
@pytest.mark.parametrize('name', OPENED)
def test_thoughts_that_the_call_opens_are_written_once(
  templates, name, answered
):
  tokenizer = tokenizer_of(templates[name])
  prompt, ids, trained = ours(tokenizer, answered)
  if name == 'qwen3_8':  # It would open those of the content once more.
    answered = REASONED
  whole = tokenizer.apply_chat_template([*ASKED, *answered])['input_ids']
  assert tokenizer.decode(prompt).endswith('<think>\n') and all(trained)
  assert prompt + ids == whole[: len(prompt) + len(ids)]
  assert tokenizer.decode(whole[len(prompt) + len(ids) :]) == '\n'


@pytest.mark.parametrize('answered', [ONE, MORE])
@pytest.mark.parametrize('name', PREFILLED + OPENED)
def test_an_expert_without_thoughts_closes_them(templates, name, answered):
  tokenizer = tokenizer_of(templates[name])
  prompt, ids, trained = ours(tokenizer, answered)
  turns = sum(turn['role'] == 'assistant' for turn in answered)
  text = tokenizer.decode(prompt + ids)
  assert text.count('<think>') == text.count('</think>') == turns
  said = tokenizer.decode([i for i, t in zip(ids, trained) if t])
  assert said.count('</think>') == turns and '<think>' not in said
  for turn in answered:
    assert (turn['content'] in said) == (turn['role'] == 'assistant')


@pytest.mark.parametrize('first', [THOUGHT[0], REASONED[0]])
@pytest.mark.parametrize('name', ['qwen3', 'glm4moe'])
def test_thoughts_of_an_earlier_turn_are_noted(templates, name, first):
  last = {**REASONED[0], 'content': '4'}
  written = write(ASKED, [first, MORE[1], last], tokenizer_of(templates[name]))
  assert written.note == chat.LOST
  assert write(ASKED, REASONED, tokenizer_of(templates[name])).note == ''


@pytest.mark.parametrize('name', ['qwen3', 'qwen3_5_think', 'glm4moe'])
def test_words_between_thoughts_are_noted(templates, name):
  content = '<think>a</think>first words<think>c</think>last'
  answered = [{'role': 'assistant', 'content': content}]
  written = write(ASKED, answered, tokenizer_of(templates[name]))
  assert 'first words' not in written.text and written.note == chat.LOST


@pytest.mark.parametrize('name', ['qwen3', 'glm4moe', *PREFILLED, *OPENED])
def test_thoughts_that_never_close_are_no_words(templates, name):
  answered = [{'role': 'assistant', 'content': '<think>\none and one'}]
  with pytest.raises(BadRow, match='whose thoughts never close'):
    write(ASKED, answered, tokenizer_of(templates[name]))


@pytest.mark.parametrize(
  'name, written',
  [
    ('qwen2_5', '{"name": "add", "arguments": {"a": 1}}'),
    ('qwen3', '{"name": "add", "arguments": {"a": 1}}'),
    ('qwen3_5_think', '<parameter=a>\n1\n</parameter>'),
    ('deepseekv3', 'add\n```json\n{"a": 1}\n```'),
    ('gemma4_v5', 'call:add{a:1}'),
  ],
)
def test_a_tool_is_called_as_openai_writes_it(templates, name, written):
  function = {'name': 'add', 'arguments': '{"a": 1}'}
  call = {'id': '1', 'type': 'function', 'function': function}
  talk = [
    {'role': 'assistant', 'content': '', 'tool_calls': [call]},
    {'role': 'tool', 'content': '2', 'tool_call_id': '1'},
    *ONE,
  ]
  found = write(ASKED, talk, tokenizer_of(templates[name]))
  assert found.text.count(written) == 1 and found.note != chat.LOST


@pytest.mark.parametrize('name', ['deepseek_r1_distill', 'llama3', 'phi3'])
def test_calls_of_tools_that_a_template_leaves_out_are_noted(templates, name):
  call = {'function': {'name': 'add', 'arguments': '{}'}}
  talk = [{**ONE[0], 'tool_calls': [call]}, *MORE[1:]]
  assert write(ASKED, talk, tokenizer_of(templates[name])).note == chat.LOST


@pytest.mark.parametrize('value', ['false', 'no', "'off'"])
@pytest.mark.parametrize('name', ['qwen3', 'qwen3_5_think', 'glm4moe'])
def test_thinking_is_switched_off(templates, name, value):
  tokenizer = tokenizer_of(templates[name])
  settings = {'template_args': f'enable_thinking={value}'}
  prompt, ids, _ = ours(tokenizer, THOUGHT, **settings)
  asked = tokenizer.apply_chat_template(
    ASKED, add_generation_prompt=True, enable_thinking=False
  )
  assert prompt == asked['input_ids']
  text = tokenizer.decode(prompt + ids)
  assert text.count('</think>') == 1 and 'One and one' not in text


@pytest.mark.parametrize('name', ['qwen3', 'qwen2_5', 'llama3_1', 'gptoss'])
def test_tools_are_written(templates, name):
  tokenizer = tokenizer_of(templates[name])
  tools = [
    {
      'type': 'function',
      'function': {
        'name': 'add',
        'description': 'Adds.',
        'parameters': {'type': 'object', 'properties': {}},
      },
    }
  ]
  writer = chat.Writer(DataConfig(), tokenizer)
  prompt = writer.prompt(writer.asked(ASKED), tools)
  assert prompt == tokenizer.apply_chat_template(
    ASKED,
    tools=tools,
    tokenize=False,
    add_generation_prompt=True,
    date_string='26 Jul 2024',
  )
  written = writer.answer(ASKED, ONE, prompt, tools)
  assert '2, él dijo.' in written.text and 'Adds.' not in written.text
