"""Rows as public datasets have them, through experiments/prepare_data.py.

For each: which column is read as what, what a row becomes, and which columns
are said not to be used. The rows are made up; the shapes are those that the
publishers document.
"""

import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import transformers

from gft_jax.config import DataConfig
from gft_jax.data import builders, columns, files

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
CHATML = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m['role'] + '\n' }}"
  "{{ m['reasoning_content'] or '' }}{{ m['content'] + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope='module')
def chat_tokenizer(tmp_path_factory):
  """A folder: a token for every byte, and a chat template."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  model = tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  backend.add_special_tokens(['<|im_start|>', '<|im_end|>'])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='<|im_end|>'
  )
  tokenizer.chat_template = CHATML
  folder = tmp_path_factory.mktemp('tokenizer')
  tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture
def prepare(monkeypatch, tmp_path, chat_tokenizer):
  """Prepares raw rows, twice each; what it found, and the first row."""
  monkeypatch.syspath_prepend(EXPERIMENTS)
  import prepare_data

  def prepare(raw):
    path, out = tmp_path / 'a.jsonl', tmp_path / 'out.json'
    path.write_text((json.dumps(raw) + '\n') * 2)
    arguments = ['--path', str(path), '--json', str(out)]
    arguments += ['--tokenizer', str(chat_tokenizer), '--set']
    arguments += [f'data.cache={tmp_path}/c']
    assert prepare_data.main(arguments) == 0
    data = DataConfig(
      path=str(path), eval_path=str(path), cache=f'{tmp_path}/c'
    )
    (row, again) = builders.source(data, 'train').rows
    assert row | {'row': 2} == again
    row.pop('row')
    return json.loads(out.read_text()), row

  yield prepare
  sys.modules.pop('prepare_data')


def user(text):
  return {'role': 'user', 'content': text}


def assistant(text, **further):
  return {'role': 'assistant', 'content': text, **further}


def row(prompt, expert, answer='', teacher=(), **turns):
  found = {'prompt': prompt, 'answer': answer, 'expert': expert}
  return {**found, 'teacher': list(teacher), **turns}


SYSTEM = {'role': 'system', 'content': 'Think.'}
TOOLS = [{'type': 'function', 'function': {'name': 'add'}}]
CALL = {'id': 'c', 'type': 'function', 'function': {'name': 'add'}}
CALLING = [
  user('What is 1+1?'),
  assistant('', reasoning_content='I add.', tool_calls=[CALL]),
  {'role': 'tool', 'content': '2', 'tool_call_id': 'c'},
  assistant('It is 2.', reasoning_content='The tool says so.'),
]
# Shape -> a row, its columns, what it becomes, and the columns not used.
SHAPES = {
  'ShareGPT': (
    {
      'id': 'x_0',
      'conversations': [
        {'from': 'human', 'value': 'What is 1+1?'},
        {'from': 'gpt', 'value': r'\boxed{2}'},
      ],
    },
    {'messages': 'conversations'},
    row('What is 1+1?', r'\boxed{2}', '2'),
    ['id'],
  ),
  'ShareGPT, with a system prompt and several turns': (
    {
      'system': 'Think.',
      'conversations': [
        {'from': 'Human', 'value': '1+1?'},
        {'from': 'GPT', 'value': '2'},
        {'from': 'human', 'value': '2+2?'},
        {'from': 'model', 'value': '4'},
      ],
    },
    {'messages': 'conversations', 'system': 'system'},
    row(
      '1+1?',
      '4',
      prompt_turns=[SYSTEM, user('1+1?')],
      expert_turns=[assistant('2'), user('2+2?'), assistant('4')],
    ),
    [],
  ),
  'OpenAI messages, with tools and thoughts': (
    {'messages': CALLING, 'tools': TOOLS},
    {'messages': 'messages', 'tools': 'tools'},
    row('What is 1+1?', 'It is 2.', expert_turns=CALLING[1:], tools=TOOLS),
    [],
  ),
  'OpenAI messages, in parts': (
    {
      'messages': [
        {
          'role': 'user',
          'content': [
            {'type': 'text', 'text': 'What is'},
            {'type': 'text', 'text': '1+1?'},
          ],
        },
        assistant([{'type': 'text', 'text': '2'}], thinking='I add.'),
      ],
    },
    {'messages': 'messages'},
    row('What is\n1+1?', '2', expert_turns=[assistant('2', thinking='I add.')]),
    [],
  ),
  'messages of questions alone': (
    {'messages': [user('1+1?')], 'ground_truth': 2},
    {'prompt': 'messages', 'answer': 'ground_truth'},
    row('1+1?', '', '2'),
    [],
  ),
  'Alpaca': (
    {'instruction': 'Add.', 'input': '1 and 1', 'output': 'It is 2.'},
    {'prompt': 'instruction', 'input': 'input', 'expert': 'output'},
    row('Add.\n\n1 and 1', 'It is 2.'),
    [],
  ),
  'Alpaca, without an input': (
    {'instruction': 'Add.', 'input': '', 'output': 'It is 2.', 'text': 'Be'},
    {'prompt': 'instruction', 'input': 'input', 'expert': 'output'},
    row('Add.', 'It is 2.'),
    ['text'],
  ),
  'Dolly': (
    {
      'instruction': 'Add.',
      'context': '1, 1',
      'response': '2',
      'category': 'q',
    },
    {'prompt': 'instruction', 'input': 'context', 'expert': 'response'},
    row('Add.\n\n1, 1', '2'),
    ['category'],
  ),
  'LUFFY': (
    {
      'data_source': 'openr1',
      'prompt': [SYSTEM, user('1+1?')],
      'target': [assistant('I add. \\boxed{2}')],
      'ability': 'math',
      'reward_model': {'ground_truth': '2', 'style': 'rule'},
      'extra_info': {'index': 0, 'split': 'default'},
    },
    {
      'prompt': 'prompt',
      'answer': 'reward_model.ground_truth',
      'expert': 'target',
    },
    row(
      '1+1?',
      'I add. \\boxed{2}',
      '2',
      prompt_turns=[SYSTEM, user('1+1?')],
    ),
    ['data_source', 'ability', 'reward_model.style', 'extra_info'],
  ),
  'LUFFY, with a target of text': (
    {
      'prompt': [user('1+1?')],
      'target': 'I add. \\boxed{2}',
      'reward_model': {'ground_truth': '2', 'style': 'rule'},
    },
    {
      'prompt': 'prompt',
      'answer': 'reward_model.ground_truth',
      'expert': 'target',
    },
    row('1+1?', 'I add. \\boxed{2}', '2'),
    ['reward_model.style'],
  ),
  'verl': (
    {
      'data_source': 'openai/gsm8k',
      'prompt': [user('1+1?')],
      'ability': 'math',
      'reward_model': {'style': 'rule', 'ground_truth': '2'},
      'extra_info': {'split': 'train', 'answer': 'I add.\n#### 2'},
    },
    {
      'prompt': 'prompt',
      'answer': 'reward_model.ground_truth',
      'expert': 'extra_info.answer',
    },
    row('1+1?', 'I add.\n#### 2', '2'),
    ['data_source', 'ability', 'reward_model.style', 'extra_info.split'],
  ),
  'TRL preference': (
    {'prompt': '1+1?', 'chosen': '2', 'rejected': '3'},
    {'prompt': 'prompt', 'expert': 'chosen'},
    row('1+1?', '2'),
    ['rejected'],
  ),
  'TRL preference of turns': (
    {
      'prompt': [user('1+1?')],
      'chosen': [assistant('2')],
      'rejected': [assistant('3')],
    },
    {'prompt': 'prompt', 'expert': 'chosen'},
    row('1+1?', '2'),
    ['rejected'],
  ),
  'TRL preference without a prompt': (
    {
      'chosen': [user('1+1?'), assistant('2')],
      'rejected': [user('1+1?'), assistant('3')],
    },
    {'messages': 'chosen', 'rejected': 'rejected'},
    row('1+1?', '2'),
    [],
  ),
  'TRL preference without a prompt, of several turns': (
    {
      'chosen': [user('1?'), assistant('1'), user('1+1?'), assistant('2')],
      'rejected': [user('1?'), assistant('1'), user('1+1?'), assistant('3')],
    },
    {'messages': 'chosen', 'rejected': 'rejected'},
    row('1+1?', '2', prompt_turns=[user('1?'), assistant('1'), user('1+1?')]),
    [],
  ),
  'UltraFeedback, whose chosen has the prompt once more': (
    {
      'prompt': '1+1?',
      'prompt_id': 'a',
      'chosen': [user('1+1?'), assistant('2')],
      'rejected': [user('1+1?'), assistant('3')],
      'messages': [user('1+1?'), assistant('2')],
      'score_chosen': 9.5,
    },
    {'prompt': 'prompt', 'expert': 'chosen'},
    row('1+1?', '2'),
    ['prompt_id', 'rejected', 'messages', 'score_chosen'],
  ),
  'ShareGPT preference': (
    {
      'conversations': [{'from': 'human', 'value': '1+1?'}],
      'chosen': {'from': 'gpt', 'value': '2'},
      'rejected': {'from': 'gpt', 'value': '3'},
    },
    {'prompt': 'conversations', 'expert': 'chosen'},
    row('1+1?', '2'),
    ['rejected'],
  ),
  'TRL prompt and completion': (
    {'prompt': '1+1?', 'completion': r'\boxed{2}'},
    {'prompt': 'prompt', 'expert': 'completion'},
    row('1+1?', r'\boxed{2}', '2'),
    [],
  ),
  'TRL prompt and completion of turns': (
    {
      'prompt': [SYSTEM, user('1+1?')],
      'completion': [assistant(r'\boxed{2}', reasoning_content='Hm.')],
    },
    {'prompt': 'prompt', 'expert': 'completion'},
    row(
      '1+1?',
      r'\boxed{2}',
      '2',
      prompt_turns=[SYSTEM, user('1+1?')],
      expert_turns=[assistant(r'\boxed{2}', reasoning_content='Hm.')],
    ),
    [],
  ),
  'a column for each teacher': (
    {
      'problem': '1+1?',
      'Final Answer': 2,
      'Solution': '2.',
      'teacher_1': 'two',
      'teacher_2': [assistant('2')],
    },
    {
      'prompt': 'problem',
      'answer': 'Final Answer',
      'expert': 'Solution',
      'teacher': 'teacher_1,teacher_2',
    },
    row('1+1?', '2.', '2', ['two', '2']),
    [],
  ),
}


@pytest.mark.parametrize('shape', SHAPES)
def test_parquet_holds_the_same(tmp_path, shape):
  raw, roles, expected, _ = SHAPES[shape]
  path = tmp_path / 'a.parquet'
  pq.write_table(pa.Table.from_pylist([raw, raw]), path)
  assert columns.column_map(path, '') == roles
  assert list(files.rows(path, roles)) == [(1, expected), (2, expected)]


@pytest.mark.parametrize('shape', SHAPES)
def test_prepare_data_reads_it(prepare, capsys, shape):
  raw, roles, expected, unused = SHAPES[shape]
  found, first = prepare(raw)
  assert found['columns'] == roles
  assert first == expected
  assert sorted(found['unused_columns']) == sorted(unused)
  out = capsys.readouterr().out
  named = [line for line in out.splitlines() if 'columns not used: ' in line]
  assert bool(named) == bool(unused)
  assert ('learns from chosen and rejected' in out) == ('rejected' in raw)
  assert not found['dropped'] and not found['left_out']
